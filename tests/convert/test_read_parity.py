"""torch itself: what it writes is read bit for bit, and what we write it reads bit for bit."""

from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest

from dialogpt_jax.convert.read import read
from dialogpt_jax.convert.write_torch import write_torch

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")


def make_state():
    """Every dtype, views with strides and offsets, shared storages, parameters."""
    torch.manual_seed(0)
    base = torch.randn(10, 12)
    state = OrderedDict(base=base, transposed=base.t(), cut=base[2:, 3:7], stepped=base[::3, 1::2], scalar=base[3, 4])
    state["expanded"] = base[:1].expand(4, 12)
    state["overlapping"] = base.as_strided((5, 6), (1, 2), 7)
    state["empty"] = base[:0]
    state["parameter"] = torch.nn.Parameter(torch.randn(4, 2))
    state["other"] = state["parameter"].detach()[1:]
    for name in "float64 float16 bfloat16 int8 int16 int32 int64 uint8 bool".split():  # noqa: SIM905
        state[name] = (3 * torch.randn(3, 5)).abs().to(getattr(torch, name))
    return state


def to_numpy(tensor) -> np.ndarray:
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def assert_same(found, state) -> None:
    assert list(found) == list(state)
    for name, tensor in state.items():
        wanted = to_numpy(tensor)
        assert found[name].dtype == wanted.dtype, name
        assert found[name].shape == wanted.shape, name
        assert found[name].tobytes() == wanted.tobytes(), name


FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


@FORMATS
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_torch_writes_and_we_read(tmp_path, zipped, protocol):
    state = make_state()
    torch.save(state, tmp_path / "x", _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    found = read(tmp_path / "x")
    assert found.format == ("pytorch zip" if zipped else "pytorch legacy")
    assert_same(found.tensors, state)
    assert np.shares_memory(found.tensors["base"], found.tensors["transposed"])


@FORMATS
def test_a_training_checkpoint(tmp_path, zipped):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    whole = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "args": {"lr": 1e-5}}
    torch.save(whole, tmp_path / "x", _use_new_zipfile_serialization=zipped)
    found = read(tmp_path / "x")
    assert found.metadata == {"epoch": 3}
    assert_same(found.tensors, model.state_dict())


@FORMATS
def test_tensors_with_attributes_and_dtypes_without_a_storage_class(tmp_path, zipped):
    marked = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    marked.note = "text"
    state = {"marked": marked, "size": torch.arange(3.0), "shape": torch.Size([2, 3]), "dtype": torch.float16}
    if zipped:  # torch itself writes these only there
        state["uint16"] = torch.arange(5, dtype=torch.int32).to(torch.uint16)[1:]
    torch.save(state, tmp_path / "x", _use_new_zipfile_serialization=zipped)
    wanted = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    assert_same(read(tmp_path / "x").tensors, wanted)


@FORMATS
def test_a_pickled_module_is_refused_by_name(tmp_path, zipped):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "x", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"torch\.nn\.modules\.linear\.Linear"):
        read(tmp_path / "x")


def test_a_negated_view_is_refused(tmp_path):
    torch.save({"w": torch.tensor([1 + 2j]).conj().imag}, tmp_path / "x")
    with pytest.raises(ValueError, match=r"signs|ComplexFloatStorage"):
        read(tmp_path / "x")


@pytest.mark.parametrize("mmap", [False, True])
def test_we_write_and_torch_reads(tmp_path, mmap):
    state = make_state()
    write_torch(tmp_path / "x.pkl", {name: to_numpy(tensor) for name, tensor in state.items()})
    found = torch.load(tmp_path / "x.pkl", weights_only=True, mmap=mmap)
    assert type(found) is OrderedDict
    assert list(found) == list(state)
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
        assert found[name].is_contiguous()
        assert not found[name].requires_grad


def test_a_tied_head_stays_tied(tmp_path):
    array = np.ones((3, 4), np.float16)
    write_torch(tmp_path / "x.pkl", {"wte": array, "head": array})
    found = torch.load(tmp_path / "x.pkl", weights_only=True)
    assert found["wte"].data_ptr() == found["head"].data_ptr()


def test_torch_to_ours_to_torch_is_bit_for_bit(tmp_path):
    state = make_state()
    torch.save(state, tmp_path / "a")
    write_torch(tmp_path / "b", read(tmp_path / "a").tensors)
    found = torch.load(tmp_path / "b", weights_only=True)
    for name, tensor in state.items():
        assert to_numpy(found[name]).tobytes() == to_numpy(tensor).tobytes()
