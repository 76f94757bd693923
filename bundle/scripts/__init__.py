"""PRDiT as a MONAI Bundle: networks, process, data, training and inference."""
