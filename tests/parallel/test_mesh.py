import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from dialogpt_jax.parallel.mesh import MeshError, make_mesh, parse_mesh


def test_a_mesh_has_three_axes_and_all_devices():
    mesh = make_mesh(parse_mesh(" data = 2, fsdp=4"))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 4, "tensor": 1}
    assert sorted(d.id for d in mesh.devices.flat) == list(range(8))
    assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize("sizes", [None, {}, parse_mesh("")])
def test_without_sizes_all_devices_repeat_the_model(sizes):
    assert dict(make_mesh(sizes).shape) == {"data": 8, "fsdp": 1, "tensor": 1}


def test_a_mesh_of_some_devices():
    some = jax.devices()[2:4]
    mesh = make_mesh({"tensor": 2}, some)
    assert list(np.ravel(mesh.devices)) == some


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model=2", ["'model'", "data, fsdp, tensor"]),
        ("data", ["data=", "whole number"]),
        ("data=two", ["data=two", "whole number"]),
        ("data=0", ["data=0", "at least 1"]),
        ("data=-1", ["data=-1"]),
        ("data=2,data=4", ["twice"]),
        ("data=²", ["whole number"]),
    ],
)
def test_a_text_that_is_no_mesh_is_one_line_that_says_why(text, words):
    with pytest.raises(MeshError) as refused:
        parse_mesh(text)
    message = str(refused.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("text", "example"),
    [
        ("fsdp=4", "data=2,fsdp=4"),
        ("data=3", "data=8"),
        ("data=2,fsdp=2", "data=4,fsdp=2"),
        ("data=4,fsdp=4,tensor=2", "fsdp=4,tensor=2"),
        ("tensor=16", "data=8"),
    ],
)
def test_another_number_of_devices_names_a_mesh_that_fits(text, example):
    with pytest.raises(MeshError, match=r"there are 8; ") as refused:
        make_mesh(parse_mesh(text))
    assert str(refused.value).endswith(f"; {example} would fit")
    assert make_mesh(parse_mesh(example)).size == 8


@pytest.mark.parametrize("sizes", [{"rows": 8}, {"data": 0}, {"data": 8.0}, {"data": True}])
def test_sizes_from_code_are_checked_too(sizes):
    with pytest.raises(MeshError, match="mesh: "):
        make_mesh(sizes)
