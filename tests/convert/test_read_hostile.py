"""Pickles that reach for code: refused by name, and nothing runs. Both of torch's formats go through the same machine.

Each hostile stream is first given to Python's own unpickler, which must fall for it: a trap that does not spring there
would prove nothing here.
"""

import contextlib
import copyreg
import pickle
import struct
import sys
from pathlib import Path

import pytest
from weight_files import (
    EMPTY,
    MAGIC,
    integer,
    legacy_bytes,
    mapping,
    put,
    refuse_bytes,
    storage,
    tensor,
    text,
    zip_bytes,
)

from dialogpt_jax.convert.read import read

BOTH = pytest.mark.parametrize("wrap", [zip_bytes, legacy_bytes], ids=["zip", "legacy"])


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A folder that exists once a stream was executed."""
    return tmp_path / "sprung"


def stack_global(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


def call(function: bytes, argument: str) -> bytes:
    return function + text(argument) + b"\x85R"


def make_streams(trap: Path) -> dict[str, tuple[bytes, str]]:
    """Name → (a stream that makes the folder `trap` when it is executed, what the refusal must name)."""
    command = f"mkdir {trap}"
    code = f"__import__('os').mkdir({str(trap)!r})"
    getattr_ = b"cbuiltins\ngetattr\n"
    chained = getattr_ + b"(cos\n__dict__\n" + text("get") + b"tR" + text("system") + b"\x85R"
    return {
        "GLOBAL os.system": (call(b"cos\nsystem\n", command), "os.system"),
        "GLOBAL posix.system": (call(b"cposix\nsystem\n", command), "posix.system"),
        "STACK_GLOBAL os.system": (call(stack_global("os", "system"), command), "os.system"),
        "GLOBAL builtins.eval": (call(b"cbuiltins\neval\n", code), "builtins.eval"),
        "GLOBAL builtins.exec": (call(b"cbuiltins\nexec\n", code), "builtins.exec"),
        "Python 2 __builtin__.eval": (call(b"c__builtin__\neval\n", code), "__builtin__.eval"),
        "getattr chain": (call(chained, command), "builtins.getattr"),
        "dotted name": (call(b"\x80\x04" + stack_global("posixpath", "os.system"), command), "posixpath.os.system"),
        "dotted name on an allowed class": (
            call(
                b"\x80\x04" + stack_global("collections", "OrderedDict.fromkeys.__self__.__class__.__name__.__class__"),
                "x",
            )
            + b"0"
            + call(b"cos\nmkdir\n", str(trap)),
            "collections.OrderedDict.fromkeys",
        ),
        "INST": (b"(" + text(command) + b"ios\nsystem\n", "os.system"),
        "OBJ": (b"(cos\nsystem\n" + text(command) + b"o", "os.system"),
    }


NAMES = list(make_streams(Path("x")))


@BOTH
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", ["as the whole file", "as a value", "behind a tensor", "as a key's neighbour"])
def test_reaching_for_code_is_refused_by_name(tmp_path, trap, wrap, name, place):
    stream, named = make_streams(trap)[name]
    sound = tensor(storage("0", "FloatStorage", 2, legacy=wrap is legacy_bytes), [2], [1])
    whole = {
        "as the whole file": stream,
        "as a value": mapping({"w": stream}),
        "behind a tensor": mapping({"w": sound, "x": stream}),
        "as a key's neighbour": EMPTY + b"(" + text("_metadata") + stream + b"u",
    }[place]
    refuse_bytes(tmp_path, wrap(whole, {"0": bytes(8)}), named, "refused, and nothing was executed")
    assert not trap.exists()


@pytest.mark.parametrize("name", NAMES)
def test_the_traps_are_real(trap, name):
    stream, _ = make_streams(trap)[name]
    with contextlib.suppress(TypeError):  # one stream ends in an error after its command has run
        pickle.loads(b"\x80\x02" + stream + b".")
    assert trap.exists()


def test_a_bare_pickle_is_refused_before_it_runs(tmp_path, trap):
    for name, (stream, named) in make_streams(trap).items():
        refuse_bytes(tmp_path, b"\x80\x02" + stream + b".", named)
        assert not trap.exists(), name
    refuse_bytes(tmp_path, f"cos\nsystem\n(S'mkdir {trap}'\ntR.".encode(), "os.system")
    refuse_bytes(tmp_path, f"(S'mkdir {trap}'\nios\nsystem\n.".encode(), "refused")
    assert not trap.exists()


@BOTH
@pytest.mark.parametrize(
    "opcode", [b"\x82\xf0", b"\x83\xf0\x00", b"\x84\xf0\x00\x00\x00"], ids=["EXT1", "EXT2", "EXT4"]
)
def test_an_extension_code_is_refused_even_when_registered_and_cached(tmp_path, trap, wrap, opcode):
    copyreg.add_extension("os", "mkdir", 0xF0)
    try:
        hostile = call(opcode, str(trap))
        pickle.loads(b"\x80\x02" + hostile + b".")  # springs, and leaves os.mkdir in the cache of extensions
        assert trap.exists()
        trap.rmdir()
        refuse_bytes(tmp_path, wrap(mapping({"w": hostile}), {}), "EXT", "code 240", "nothing was executed")
        assert not trap.exists()
    finally:
        copyreg.remove_extension("os", "mkdir", 0xF0)
        copyreg.clear_extension_cache()


@BOTH
@pytest.mark.parametrize(
    "name",
    [
        ("subprocess", "Popen"),
        ("torch.storage", "_load_from_bytes"),
        ("torch", "load"),
        ("torch._utils", "_rebuild_sparse_tensor"),
        ("torch._utils", "_import_dotted_name"),
        ("torch.nn.modules.linear", "Linear"),
        ("torch.serialization", "_get_layout"),
        ("collections", "OrderedDict.__init__.__globals__"),
        ("torch", "_utils._rebuild_tensor_v2"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("transformers.models.gpt2.modeling_gpt2", "GPT2LMHeadModel"),
        ("", ""),
    ],
)
def test_names_outside_the_list(tmp_path, wrap, name):
    for function in (f"c{name[0]}\n{name[1]}\n".encode(), stack_global(*name)):
        for opcode in (b")R", b")\x81", b")}\x92"):  # REDUCE, NEWOBJ, NEWOBJ_EX
            refuse_bytes(tmp_path, wrap(mapping({"w": function + opcode}), {}), ".".join(name))
        refuse_bytes(tmp_path, wrap(mapping({"w": function}), {}), ".".join(name))  # named and not even called


@BOTH
@pytest.mark.parametrize("marker", ["ctorch\nFloatStorage\n", "ctorch\nfloat32\n", "ctorch\nTensor\n"])
def test_what_may_be_named_may_not_be_called(tmp_path, wrap, marker):
    refuse_bytes(tmp_path, wrap(mapping({"w": marker.encode() + b")R"}), {}), "may be named but not called")


@BOTH
@pytest.mark.parametrize("opcode", [b")\x81", b")}\x92"], ids=["NEWOBJ", "NEWOBJ_EX"])
def test_no_object_is_made_even_of_an_allowed_class(tmp_path, wrap, opcode):
    hostile = b"ccollections\nOrderedDict\n" + opcode
    refuse_bytes(tmp_path, wrap(mapping({"w": hostile}), {}), "NEWOBJ", "collections.OrderedDict")


@BOTH
@pytest.mark.parametrize("thing", [text("os.system"), b"}", integer(3), b"N", EMPTY, b"]"])
def test_reduce_on_a_value(tmp_path, wrap, thing):
    refuse_bytes(tmp_path, wrap(mapping({"w": thing + b")R"}), {}), "refused")


@BOTH
def test_build_sets_nothing(tmp_path, wrap):
    legacy = wrap is legacy_bytes
    sound = tensor(storage("0", "FloatStorage", 2, legacy=legacy), [2], [1])
    state = mapping({"__class__": text("x"), "items": text("y"), "w": text("z")}, empty=b"}")
    found = read(put(tmp_path, wrap(mapping({"w": sound}) + state + b"b", {"0": bytes(8)})))
    assert list(found.tensors) == ["w"]
    assert found.tensors["w"].tolist() == [0.0, 0.0]
    for target in (sound, b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n", text("a"), b")"):
        refuse_bytes(tmp_path, wrap(mapping({"w": target + b"}b"}), {"0": bytes(8)}), "no dict")


@BOTH
@pytest.mark.parametrize(
    "stream",
    [
        b"X\xff\xff\xff\x7fabc",  # a text of 2 GiB
        b"\x8d" + b"\xff" * 8,  # BINUNICODE8 of 2^64
        b"\x8e" + struct.pack("<Q", 2**40),  # BINBYTES8
        b"\x95" + struct.pack("<Q", 2**62),  # a frame
        b"\x8b\xff\xff\xff\x7f",  # LONG4 of 2 GiB
        b"\x8b\x00\x00\x10\x00" + b"\x01" * 2**20,  # LONG4 of 1 MiB that is there
        b"\x8b\xff\xff\xff\xff",  # LONG4 of -1
        b"\x80\x99N",  # protocol 153
        b"(" * 20_000,  # marks
        b"]" * 20_000 + b"a" * 19_999,  # lists twenty thousand deep
        b"N" + b"\x85" * 20_000,  # tuples as deep
        b"}(N" + b"\x85" * 20_000 + b"Nu",  # … as a key: hashing it would end the process
        b"}q\x00" + text("a") + b"h\x00s",  # a dict that holds itself
        b"]q\x00h\x00a",  # a list that holds itself
        b"h\x05",  # a value that was never made
        b"t", b"u", b"e", b"0", b"1", b"R", b"b", b"a", b"s", b"\x93", b"Q", b"\x85", b"q\x00", b"\x94",
        b"}]]s",  # a list as a key
        b"J\x01", b"G\x01", b"\x8a\x05\x01", b"X\x05\x00\x00\x00a",  # cut off inside a value
        b"}(NNNu",  # a key without a value
        b"cos\xff\nsystem\n", b"c" + b"x" * 5000, b"cno_end",
        b"\x8f(\x90", b"(\x91", b"\x96" + bytes(8), b"\x97", b"\x98", b"P0\n", b"I01\n", b"\xfe", b"\x00",
    ],
    ids=lambda stream: repr(stream[:12]),
)  # fmt: skip
def test_damaged_and_oversized_streams(tmp_path, wrap, stream):
    refuse_bytes(tmp_path, wrap(stream, {}))
    refuse_bytes(tmp_path, wrap(mapping({"w": stream}), {}))


@BOTH
def test_an_integer_of_a_megabyte(tmp_path, wrap):
    # Python refuses to write such a number as digits, so it must not reach a message.
    huge = b"\x8b" + struct.pack("<i", 2**20) + b"\x01" * 2**20
    refuse_bytes(tmp_path, wrap(mapping({"w": huge}), {}), "integer of 1048576 bytes")
    magic = pickle.dumps(MAGIC, protocol=2)
    refuse_bytes(tmp_path, magic + b"\x80\x02" + huge + b".", "integer of 1048576 bytes")


@BOTH
def test_a_stream_longer_than_any_checkpoint_has(tmp_path, wrap, monkeypatch):
    stream = mapping({f"w{index}": integer(index) for index in range(100)})
    assert refuse_bytes(tmp_path, wrap(stream, {}), "no dict of tensors")
    for module in ("unpickle", "read_torch"):
        monkeypatch.setattr(f"dialogpt_jax.convert.{module}.MAX_STREAM", 200)
    refuse_bytes(tmp_path, wrap(stream, {}), "bytes")


@BOTH
def test_one_large_value_named_many_times(tmp_path, wrap):
    # Looking into it once for each name would take hours.
    large = b"](" + b"N" * 20_000 + b"e" + b"q\x01"
    names = b"".join(text(f"w{index}") + b"h\x01" for index in range(20_000))
    refuse_bytes(tmp_path, wrap(EMPTY + b"(" + text("w") + large + names + b"u", {}), "no dict of tensors")
    large = b"}(" + b"".join(text(f"v{index}") + b"N" for index in range(20_000)) + b"u" + b"q\x01"
    refuse_bytes(tmp_path, wrap(EMPTY + b"(" + text("w") + large + names + b"u", {}), "no dict of tensors")


@BOTH
def test_damage_that_is_met_only_while_a_message_is_made(tmp_path, wrap):
    deep = b"N" + b"\x85" * 20_000
    legacy = wrap is legacy_bytes
    block = storage("0", "FloatStorage", 2, legacy=legacy)
    whole = b"ctorch._utils\n_rebuild_tensor_v2\n(" + block + deep + deep + deep + b"\x89" + EMPTY + b"tR"
    refuse_bytes(tmp_path, wrap(mapping({"w": whole}), {"0": bytes(8)}))
    refuse_bytes(tmp_path, wrap(mapping({"w\n" + "x" * 10_000: text("a")}), {}))
    refuse_bytes(tmp_path, wrap(mapping({"w": deep + b"Q"}), {}))


def test_nothing_of_torch_or_the_file_is_imported(tmp_path):
    refuse_bytes(tmp_path, zip_bytes(mapping({"w": b"cantigravity\nfly\n)R"}), {}), "antigravity.fly")
    assert "antigravity" not in sys.modules
