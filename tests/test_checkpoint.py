import json
import os
import pickle
import re

import pytest
import torch
from pydantic import ValidationError

from scripts.files import sha256_of
from scripts.networks import build_prdit, export_weights, guidance_of, network_from_checkpoint, read_card, save_weights
from scripts.networks.checkpoint import load_strictly, load_tensors, save_tensors


@pytest.fixture
def saved(tmp_path, make_network):
    """A network and its file."""
    network, path = make_network(parametrization="skip"), tmp_path / "model.pt"
    save_weights(network, path, {"stage": "model", "process": {"name": "cosine_sine", "noise_std": 0.5}})
    return network, path


class Foreign:
    """What no checkpoint may hold."""


def test_round_trip_is_exact(saved):
    network, path = saved
    loaded = network_from_checkpoint(path)
    assert loaded.settings == network.settings and loaded.skip
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_weights_are_a_plain_state_dict_on_the_cpu(saved):
    network, path = saved
    state = torch.load(path, weights_only=True)
    assert list(state) == list(network.state_dict())
    assert all(type(value) is torch.Tensor and value.device.type == "cpu" for value in state.values())


def test_equal_weights_have_equal_hashes(tmp_path, make_network):
    network = make_network()
    first, second = (save_weights(network, tmp_path / name, {}) for name in ("a.pt", "another.pt"))
    assert first == second


def test_half_the_bits_load_into_float32(tmp_path, make_network, make_volume):
    network = make_network()
    save_weights(network, tmp_path / "full.pt", {})
    save_weights(network, tmp_path / "half.pt", {}, dtype=torch.bfloat16)
    assert (tmp_path / "half.pt").stat().st_size < 0.7 * (tmp_path / "full.pt").stat().st_size
    loaded = network_from_checkpoint(tmp_path / "half.pt")
    for name, value in network.state_dict().items():
        assert loaded.state_dict()[name].dtype == torch.float32
        assert torch.equal(loaded.state_dict()[name], value.bfloat16().float())
    assert next(network.parameters()).dtype == torch.float32


def test_only_what_sees_the_time_alone_is_stored_in_fewer_bits(tmp_path, make_network):
    network = make_network(parametrization="skip")
    save_weights(network, tmp_path / "less.pt", {}, torch.bfloat16, torch.float8_e4m3fn)
    loaded, less = network_from_checkpoint(tmp_path / "less.pt").state_dict(), set()
    for name, value in network.state_dict().items():
        if not torch.equal(loaded[name], value.bfloat16().float()):
            assert torch.equal(loaded[name], value.to(torch.float8_e4m3fn).float())
            less.add(name)
    of_time = re.compile(r"(time|.*time_head|.*modulation\.linear)\.weight")
    assert less == {name for name in loaded if of_time.fullmatch(name)}


def test_settings_travel_with_the_weights(saved):
    network, path = saved
    card = read_card(path)
    assert card.model_dump(by_alias=True, exclude_unset=True) == json.loads(path.with_suffix(".json").read_text())
    assert card.sha256 == sha256_of(path) and card.path == path and card.kind == "prdit"
    assert card.network == network.settings
    assert card.facts == {"stage": "model", "process": {"name": "cosine_sine", "noise_std": 0.5}}
    with pytest.raises(ValidationError):
        card.stage = "other"


OLD = {
    "the first ones": {"num_predictions", "attention", "mlp_ratio"},
    "with T in the network": {"num_train_timesteps"},
    "without a kind": {"kind"},
}


@pytest.mark.parametrize("form", OLD)
def test_cards_of_earlier_versions_are_read(saved, form, make_volume):
    """They have no schema and no kind, T in the network, or less of it, and one number for a grid."""
    network, path = saved
    description = path.with_suffix(".json")
    content = json.loads(description.read_text())
    del content["schema"], content["settings_sha256"]
    for name in OLD[form] | {"kind"}:
        content["network"].pop(name, None)
    if form == "with T in the network":
        content["network"]["num_train_timesteps"] = content["process"]["num_train_timesteps"] = 500
    content["data"] = {"grid": 8, "field_of_view_mm": 320.0, "hu_window": [-1000, 1000]}
    description.write_text(json.dumps(content))
    card, x = read_card(path), make_volume(1, 1, 8, 8, 8)
    assert (card.schema_version, card.kind, card.data.grid, card.data.intensity) == (1, "prdit", [8, 8, 8], "HU")
    assert "num_train_timesteps" not in card.network
    loaded = network_from_checkpoint(path).eval()
    assert loaded.num_train_timesteps == card.num_train_timesteps == (500 if "T" in form else 1000)
    assert torch.equal(loaded(x), network(x))  # at t = 0


@pytest.mark.parametrize(
    ("where", "value"),
    [(("network", "parametrization"), "skip"), (("network", "mlp_ratio"), 4.5), (("process", "noise_std"), 0.5),
     (("data", "hu_window"), [-1000, 400]), (("data", "field_of_view_mm"), 300)],
)  # fmt: skip
def test_a_card_that_was_changed_by_hand_is_refused_though_it_fits(make_network, tmp_path, one_line, where, value):
    data = {"grid": [8, 8, 8], "field_of_view_mm": 320.0, "hu_window": [-1000.0, 1000.0]}
    save_weights(make_network(), tmp_path / "w.pt", {"process": {"name": "cosine_sine"}, "data": data})
    description = tmp_path / "w.json"
    content = json.loads(description.read_text())
    content["data"]["field_of_view_mm"] = 320  # as another program formats it
    content |= {"guidance": {}, "note": "mine"}
    content["network"]["chunk_tokens"] = 5
    description.write_text(json.dumps(content))
    assert read_card(tmp_path / "w.pt").kind == "prdit"
    content[where[0]][where[1]] = value
    description.write_text(json.dumps(content))
    with pytest.raises(ValueError) as raised:
        read_card(tmp_path / "w.pt")
    one_line(raised, description, "was changed", "settings_sha256")
    del content["settings_sha256"]  # meant, or of an older version
    description.write_text(json.dumps(content))
    assert read_card(tmp_path / "w.pt").network["depth"] == 2


@pytest.mark.parametrize(
    ("changed", "words"),
    [({"schema": 2}, ["newer version", "schema 2"]), ({"network": {"kind": "gan"}}, ["kind gan", "prdit"])],
)
def test_cards_of_later_versions_are_refused(saved, changed, words, one_line):
    _, path = saved
    description = path.with_suffix(".json")
    content = {**json.loads(description.read_text()), "settings_sha256": None, **changed}
    description.write_text(json.dumps(content))
    with pytest.raises(ValueError) as raised:
        network_from_checkpoint(path)
    one_line(raised, description, *words)


def test_settings_that_change_no_weight_can_be_overridden(saved, make_volume):
    network, path = saved
    loaded = network_from_checkpoint(path, chunk_tokens=7).eval()
    assert loaded.local.chunk_tokens == 7
    x = make_volume(1, 1, 8, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), network(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated_weights(saved, share, one_line):
    _, path = saved
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    for read in (network_from_checkpoint, load_tensors):
        with pytest.raises(ValueError) as raised:
            read(path)
        one_line(raised, path, "truncated")


def test_changed_weights(saved, one_line):
    _, path = saved
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError) as raised:
        network_from_checkpoint(path)
    one_line(raised, path, "sha256")


def test_missing_files(saved, tmp_path, one_line):
    _, path = saved
    with pytest.raises(ValueError) as raised:
        network_from_checkpoint(tmp_path / "none.pt")
    one_line(raised, tmp_path / "none.pt")
    path.with_suffix(".json").unlink()
    with pytest.raises(ValueError) as raised:
        network_from_checkpoint(path)
    one_line(raised, path, "model.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"network": {}}'])
def test_a_json_that_describes_nothing(saved, text, one_line):
    _, path = saved
    path.with_suffix(".json").write_text(text)
    with pytest.raises(ValueError) as raised:
        network_from_checkpoint(path)
    one_line(raised, path.with_suffix(".json"))


@pytest.mark.parametrize("network", [None, {}, {"hidden": 3}])
def test_a_json_without_the_network(saved, network, one_line):
    _, path = saved
    content = {"sha256": sha256_of(path)} | ({} if network is None else {"network": network})
    path.with_suffix(".json").write_text(json.dumps(content))
    with pytest.raises(ValueError) as raised:
        network_from_checkpoint(path)
    one_line(raised, "model.json")


def describe(path):
    """Makes the JSON beside the weights agree with whatever they now are."""
    settings = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({**settings, "sha256": sha256_of(path)}))


def test_foreign_objects_are_not_loaded(saved, one_line):
    network, path = saved
    torch.save({**network.state_dict(), "extra": Foreign()}, path)
    describe(path)
    with pytest.raises(ValueError) as raised:
        network_from_checkpoint(path)
    one_line(raised, path)


def test_pickled_code_is_not_run(saved, tmp_path, one_line):
    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    _, path = saved
    path.write_bytes(pickle.dumps({"weight": Harmful()}))
    describe(path)
    with pytest.raises(ValueError) as raised:
        network_from_checkpoint(path)
    one_line(raised, path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"hello", b"version https://git-lfs.github.com/spec/v1\n", b"\x80" * 9])
def test_files_that_are_no_checkpoint(tmp_path, content, one_line):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError) as raised:
        load_tensors(path)
    one_line(raised, path)


def test_a_tensor_alone_is_no_state_dict(tmp_path, one_line):
    torch.save(torch.zeros(3), tmp_path / "model.pt")
    with pytest.raises(ValueError) as raised:
        load_tensors(tmp_path / "model.pt")
    one_line(raised, tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"depth": 3}, ["missing", "residual.blocks.2"]),
        ({"depth": 1}, ["unknown", "residual.blocks.1"]),
        ({"hidden_size": 48}, ["another shape", "time.weight"]),
    ],
)
def test_weights_of_another_network(saved, make_network, settings, words, one_line):
    _, path = saved
    other = make_network(**settings)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ValueError) as raised:
        load_strictly(other, load_tensors(path), path)
    one_line(raised, path, *words)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_numbers_in_place_of_tensors_are_refused(make_network, one_line):
    network = make_network(depth=0)
    with pytest.raises(ValueError) as raised:
        load_strictly(network, {**network.state_dict(), "time.bias": 3.0}, "model.pt")
    one_line(raised, "model.pt", "time.bias")


def test_saving_over_weights_replaces_both_files(saved, tmp_path):
    _, path = saved
    network = build_prdit(24, 4, 0, patch_size=4, stride=2)
    assert save_weights(network, path, {}) == sha256_of(path) == read_card(path).sha256
    assert network_from_checkpoint(path).residual is None
    assert sorted(item.name for item in tmp_path.iterdir()) == ["model.json", "model.pt"]


@pytest.mark.parametrize(
    "change",
    [
        {"data": {"grid": [8, 8], "field_of_view_mm": 320.0, "hu_window": [-1000, 1000]}},
        {"data": {"grid": [8, 8, 8], "field_of_view_mm": 320.0}},
        {"data": {"grid": [8, 8, 8], "field_of_view_mm": float("nan"), "hu_window": [-1000, 1000]}},
        {"data": {"grid": [8, 8, 8], "field_of_view_mm": 320.0, "hu_window": [1000, -1000]}},
        {"data": {"grid": [8, 8, 8], "field_of_view_mm": 320.0, "hu_window": [-1, 1], "intensity": "foo"}},
        {"data": 3},
        {"data": {"grid": [7, 8, 8], "field_of_view_mm": 320.0, "hu_window": [-1000, 1000]}},
        {"process": []},
        {"process": {"num_train_timesteps": 1000}},
        {"process": {"name": "cosine_sine", "num_train_timesteps": "1000"}},
        {"process": {"name": "cosine_sine", "noise_std": float("nan")}},
        {"process": {"name": "cosine_sine", "speed": 1}},
        {"guidance": "much"},
        {"sha256": 3},
        {"network": "PRDiT"},
        {"network": {"hidden_size": 10**9, "num_heads": 4, "depth": 2, "patch_size": 4, "stride": 2}},
        {"network": {"hidden_size": 24, "num_heads": 4, "depth": 10**6, "patch_size": 4, "stride": 2}},
        {"network": {"hidden_size": 24, "num_heads": 4, "depth": 2, "patch_size": 4, "stride": 2, "mlp_ratio": 1e9}},
        {"network": {"hidden_size": 24, "num_heads": 0, "depth": 2, "patch_size": 4, "stride": 2}},
        {"network": {"hidden_size": 24, "num_heads": 4, "depth": 2, "patch_size": -4, "stride": 2}},
        {"network": {"hidden_size": "x", "num_heads": 4, "depth": 2, "patch_size": 4, "stride": 2}},
        {"network": {"backbone": {"backbone": []}}},
        {"network": {"hidden_size": 24, "num_heads": 4, "depth": 2, "patch_size": 4, "stride": 2, "chunk_tokens": -1}},
    ],
)
def test_a_json_of_wrong_content_is_named_before_anything_is_built(saved, change, one_line):
    _, path = saved
    description = path.with_suffix(".json")
    description.write_text(json.dumps({**json.loads(description.read_text()), **change}))
    with pytest.raises(ValueError) as raised:
        network_from_checkpoint(path)
    one_line(raised, description)


@pytest.mark.parametrize("guidance", [{"scale": 1, "block": 2}, {"scale": -1}, {"scale": 1, "strength": 2}])
def test_a_json_that_recommends_another_network_s_guidance_is_named(saved, guidance, one_line):
    _, path = saved
    description = path.with_suffix(".json")
    description.write_text(json.dumps({**json.loads(description.read_text()), "guidance": guidance}))
    with pytest.raises(ValueError) as raised:
        guidance_of(read_card(path))
    one_line(raised, path, "guidance")


@pytest.mark.parametrize("depth", [900, 100_000])
def test_a_deeply_nested_json_is_refused(saved, depth, one_line):
    _, path = saved
    network = '{"backbone": ' * depth + "{}" + "}" * depth
    path.with_suffix(".json").write_text(f'{{"sha256": "{sha256_of(path)}", "network": {network}}}')
    with pytest.raises(ValueError) as raised:
        network_from_checkpoint(path)
    one_line(raised, path.with_suffix(".json"))


def test_a_part_that_a_run_needs_is_asked_for(saved, one_line):
    with pytest.raises(ValueError) as raised:
        read_card(saved[1], required=["data"])
    one_line(raised, saved[1].with_suffix(".json"), "data")


@pytest.mark.parametrize(
    "change", [torch.Tensor.int, torch.Tensor.cfloat, torch.Tensor.bool, torch.Tensor.to_sparse, lambda t: t.to("meta")]
)
def test_weights_that_are_no_real_numbers_are_refused(make_network, change, one_line):
    network = make_network(depth=0)
    state = {**network.state_dict(), "time.bias": change(network.time.bias.detach())}
    with pytest.raises(ValueError) as raised:
        load_strictly(network, state, "model.pt")
    one_line(raised, "model.pt", "1 not plain real numbers (time.bias)")


def test_weights_that_are_not_finite_are_neither_loaded_nor_written(saved, make_network, one_line, tmp_path):
    network, path = saved
    before = path.read_bytes()
    with torch.no_grad():
        network.time.bias[0] = 1.0e5
    save_weights(network, tmp_path / "large.pt", {})
    with pytest.raises(ValueError) as raised:
        export_weights(tmp_path / "large.pt", tmp_path / "half.pt", "float16")
    one_line(raised, tmp_path / "half.pt", "time.bias", "float16")
    with torch.no_grad():
        network.time.bias[0] = float("nan")
    with pytest.raises(ValueError) as raised:
        save_weights(network, path, {})
    one_line(raised, path, "time.bias", "not finite")
    assert path.read_bytes() == before and not (tmp_path / "half.json").exists()
    with pytest.raises(ValueError) as raised:
        load_strictly(make_network(parametrization="skip"), network.state_dict(), "model.pt")
    one_line(raised, "model.pt", "time.bias", "not finite")


# export


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("there", "output", "facts"),
    [
        ({}, "model.pt", ["ckpt_path", "only read"]),
        ({}, "sub/../model.pt", ["ckpt_path", "only read"]),
        ({}, "model.json", ["model.json must end in .pt"]),
        ({}, "model.bf16", ["model.bf16 must end in .pt"]),
        ({}, "out.safetensors", ["must end in .pt"]),
        ({"out.pt": "mine"}, "out.pt", ["out.pt exists already"]),
        ({"out.json": "{}"}, "out.pt", ["out.json exists already"]),
        ({"out.json": "[1]"}, "out.pt", ["out.json exists already"]),
        ({"out.pt": "mine", "out.json": '{"exported_from_sha256": "of another"}'}, "out.pt", ["exists already"]),
    ],
)
def test_export_replaces_nothing_that_it_did_not_make(saved, tmp_path, one_line, there, output, facts):
    (tmp_path / "sub").mkdir()
    for name, text in there.items():
        (tmp_path / name).write_text(text)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(ValueError) as raised:
        export_weights(saved[1], tmp_path / output)
    one_line(raised, *facts)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_export_repeats_itself_and_what_a_kill_left(saved, tmp_path):
    export_weights(saved[1], tmp_path / "out.pt")
    once = files(tmp_path)
    (tmp_path / "out.pt").unlink()  # killed between the two files
    for _ in range(2):
        export_weights(saved[1], tmp_path / "out.pt")
        assert files(tmp_path) == once
    export_weights(saved[1], tmp_path / "out.pt", "float32")
    assert files(tmp_path) != once


def test_equal_contents_are_equal_bytes(tmp_path):
    """Whether two texts are one object or two, as they are after a checkpoint was loaded."""
    for name, text in (("a", "betas"), ("b", "".join(["be", "tas"]))):
        save_tensors({"x": {text: torch.ones(2)}, "y": ["betas", (text, 0.5)]}, tmp_path / f"{name}.pt")
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()
    assert load_tensors(tmp_path / "a.pt")["y"] == ["betas", ("betas", 0.5)]
