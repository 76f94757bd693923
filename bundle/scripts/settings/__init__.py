"""Settings that a user types. `checks.check_settings` is what every config runs first."""

from .values import require_numbers, usable_device, whole_number
