"""Collectives in programs compiled for eight CPU devices, and in HLO text of the TPU compiler."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from jaxnlp.planning import hlo
from jaxnlp.planning.hlo import Collective, collectives, replica_groups
from jaxnlp.sharding.mesh import MeshConfig, make_mesh

SIZES = {"data": 2, "fsdp": 2, "tensor": 2}
PAIRS = ((0, 1), (2, 3), (4, 5), (6, 7))
ACROSS = ((0, 4), (1, 5), (2, 6), (3, 7))


def compiled(fn, spec, out=None):
    mesh = make_mesh(MeshConfig(**SIZES), jax.devices()[:8])
    inner = jax.shard_map(fn, mesh=mesh, in_specs=spec, out_specs=spec if out is None else out, check_vma=False)
    return collectives(jax.jit(inner).lower(jnp.zeros((8, 8))).compile().as_text())


def table(traffic):
    return [(c.kind, c.axes(SIZES), c.bytes, c.count) for c in traffic]


@pytest.mark.parametrize(
    ("fn", "kind", "axes", "size"),
    [
        (lambda x: jax.lax.psum(x, "tensor"), "all-reduce", ("tensor",), 4 * 8 * 4),
        (lambda x: jax.lax.psum(x, ("data", "tensor")), "all-reduce", ("data", "tensor"), 4 * 8 * 4),
        (lambda x: jax.lax.all_gather(x, "fsdp", tiled=True)[:4], "all-gather", ("fsdp",), 8 * 8 * 4),
        (lambda x: jax.lax.ppermute(x, "data", [(0, 1), (1, 0)]), "collective-permute", ("data",), 4 * 8 * 4),
    ],
)
def test_kind_axes_and_bytes(fn, kind, axes, size):
    assert table(compiled(fn, P("data"))) == [(kind, axes, size, 1)]


def test_a_loop_counts_as_often_as_it_turns():
    def turn(x, _):
        x = jax.lax.psum(jnp.sin(x), "fsdp")
        return jax.lax.scan(lambda y, _: (jax.lax.psum(jnp.cos(y), "tensor"), None), x, None, length=3)[0], None

    traffic = compiled(lambda x: jax.lax.scan(turn, x, None, length=5)[0], P())
    assert sorted(table(traffic)) == [("all-reduce", ("fsdp",), 256, 5), ("all-reduce", ("tensor",), 256, 15)]


def test_one_device_communicates_nothing():
    assert collectives(jax.jit(jnp.sin).lower(jnp.zeros(3)).compile().as_text()) == []


@pytest.mark.parametrize(
    ("printed", "wanted"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}, x", PAIRS),
        ("replica_groups=[4,2]<=[8], x", PAIRS),
        ("replica_groups=[4,2]<=[2,4]T(1,0), x", ACROSS),
        ("replica_groups=[4,2]<=[2,2,2]T(2,1,0), x", ((0, 4), (2, 6), (1, 5), (3, 7))),
        ("replica_groups=mesh['axis_0'=1,'axis_1'=4,'axis_2'=2] {'axis_2'}, x", PAIRS),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}, x", ACROSS),
        ("replica_groups=mesh['axis_0'=1,'axis_1'=2,'axis_2'=4], device_ids=([4,2]T(1,0)) {'axis_1'}, x", PAIRS),
        ("replica_groups=mesh['a'=2,'b'=4] {'b':(2)2}, x", PAIRS),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=(3,1,2,0) {'b'}, x", ((3, 1), (2, 0))),
        ("source_target_pairs={{0,1},{1,0}}, x", ((0, 1), (1, 0))),
        ("replica_groups={}, x", ()),
    ],
)
def test_every_form_of_groups(printed, wanted):
    assert replica_groups(printed) == wanted


def program(entry: str, *computations: str) -> str:
    return "\n\n".join(
        ["HloModule jit_step, is_scheduled=true", *computations, f"ENTRY %main (p: f32[]) -> f32[] {{\n{entry}\n}}"]
    )


GROUPS = "replica_groups=mesh['a'=1,'b'=8] {'b'}"


def test_a_reduce_scatter_on_its_own_and_as_a_fusion():
    fused = f"""%all-reduce-scatter.3 (input: f32[512,1024]) -> f32[512,128] {{
  %input = f32[512,1024]{{1,0}} parameter(0)
  %all-reduce.34 = f32[512,1024]{{1,0}} all-reduce(%input), channel_id=92, {GROUPS}, to_apply=%add
  ROOT %dynamic-slice = f32[512,128]{{1,0}} dynamic-slice(%all-reduce.34, %x, %y)
}}"""
    entry = f"""  %fusion.6 = f32[512,128]{{1,0:T(8,128)S(1)}} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.3
  %reduce-scatter.4 = f32[512,128]{{1,0:T(8,128)}} reduce-scatter(%p), channel_id=2, {GROUPS}, dimensions={{1}}"""
    everyone = (tuple(range(8)),)
    assert collectives(program(entry, fused)) == [Collective("reduce-scatter", everyone, 512 * 1024 * 4, 1)] * 2


def test_an_asynchronous_pair_counts_once_by_what_comes_out():
    entry = f"""  %s = (bf16[4,128]{{1,0}}, bf16[4,1024]{{1,0}}, u32[]{{:S(2)}}) all-gather-start(%p), {GROUPS}
  %d = bf16[4,1024]{{1,0}} all-gather-done(%s)
  %c = (f32[8]{{0}}, f32[8]{{0}}, u32[], u32[]) collective-permute-start(%p), source_target_pairs={{{{0,1}},{{1,0}}}}
  %e = f32[8]{{0}} collective-permute-done(%c)"""
    gathered, moved = collectives(program(entry))
    assert (gathered.kind, gathered.bytes, gathered.sent(8)) == ("all-gather", 8192, 8192 * 7 / 8)
    assert (moved.kind, moved.bytes, moved.sent(8)) == ("collective-permute", 32, 32)


def test_a_call_on_another_core_is_looked_into():
    called = f"""%called.13 (p.1: f32[1024,8]) -> f32[128,8] {{
  ROOT %r = f32[128,8]{{1,0}} reduce-scatter(%p.1), channel_id=3, {GROUPS}, dimensions={{0}}, to_apply=%add
}}"""
    entry = """  %s = ((f32[1024,8], token[]), f32[128,8]) call-start(%p), to_apply=%called.13
  %d = f32[128,8] call-done(%s)"""
    assert [(c.kind, c.bytes) for c in collectives(program(entry, called))] == [("reduce-scatter", 1024 * 8 * 4)]


def test_fusions_repeat_a_collective_but_equal_ids_elsewhere_are_two():
    line = f"all-gather(%p.0), channel_id=6, {GROUPS}, dimensions={{1}}"
    pieces = [f"%piece.{i} (p.0: f32[1]) -> f32[8] {{\n  ROOT %g.{i} = f32[8]{{0}} {line}\n}}" for i in range(3)]
    fusions = "\n".join(f"  %f.{i} = f32[8]{{0}} fusion(%p), kind=kCustom, calls=%piece.{i}" for i in range(3))
    assert len(collectives(program(fusions, *pieces))) == 1
    assert len(collectives(program(f"  %a = f32[8]{{0}} {line}\n  %b = f32[8]{{0}} {line}"))) == 2


SLICES = ((100000, 200000), (100001, 200001))


@pytest.mark.parametrize(
    ("target", "kind", "sent", "wanted"),
    [
        ('"{1,2}x{0:1}"', "ALL_REDUCE", "f32[8,16]", Collective("all-reduce", SLICES, 512, 1)),
        ('"{1,2}x{0:1}"', "ALL_GATHER", "bf16[8,16]", Collective("all-gather", SLICES, 512, 1)),
        (
            "{{100001->200000},{200001->100000}}",
            "ONE_TO_ONE",
            "f32[8]",
            Collective("collective-permute", ((100001, 200000), (200001, 100000)), 32, 1),
        ),
        (
            "{{100000,100001,200000,200001}}",
            "ALL_TO_ALL",
            "f32[8]",
            Collective("all-to-all", ((100000, 100001, 200000, 200001),), 32, 1),
        ),
    ],
)
def test_what_goes_between_slices_is_in_a_send_to_the_host(target, kind, sent, wanted):
    runtime = '_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="a_0"'
    transfer = f'_xla_megascale_target={target},_xla_megascale_transfer_type="{kind}"'
    attributes = f"frontend_attributes={{{runtime},{transfer}}}"
    entry = f"""  %send.1 = ({sent}{{0:T(128)}}, u32[], token[]) send(%p, %t), channel_id=2, {attributes}
  %send-done.1 = token[] send-done(%send.1), channel_id=2, frontend_attributes={{{runtime}}}
  %recv.1 = ({sent}{{0}}, u32[], token[]) recv(%t), channel_id=1, {attributes}"""
    assert collectives(program(entry)) == [dataclasses.replace(wanted, between_slices=True)]


def loop(stride: int, limit: str = "constant(4)") -> str:
    condition = f"""%cond (c: (f32[8], u32[])) -> pred[] {{
  %limit = u32[]{{:T(128)}} {limit}
  %c = (f32[8], u32[]) parameter(0)
  %i = u32[]{{:T(128)}} get-tuple-element(%c), index=1
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}}"""
    body = f"""%body (b: (f32[8], u32[])) -> (f32[8], u32[]) {{
  %b = (f32[8], u32[]) parameter(0)
  %step = u32[] constant({stride})
  %x = f32[8]{{0}} get-tuple-element(%b), index=0
  %k = u32[] get-tuple-element(%b), index=1
  %n = u32[] add(%k, %step)
  %y = f32[8]{{0}} collective-permute(%x), channel_id=5, source_target_pairs={{{{0,1}},{{1,0}}}}, metadata={{op_name="a"
b" stack_frame_id=1}}
  %z = f32[8]{{0}} collective-permute(%y), channel_id=6, source_target_pairs={{{{0,1}},{{1,0}}}}
  ROOT %t = (f32[8], u32[]) tuple(%z, %n)
}}"""
    return program("  %w = (f32[8], u32[]) while(%p), condition=%cond, body=%body", condition, body)


def test_a_loops_turns_from_its_condition_and_its_stride():
    # A windowed einsum over a ring of eight is a loop of 4 iterations, unrolled by 2.
    assert [c.count for c in collectives(loop(1))] == [4, 4]
    assert [c.count for c in collectives(loop(2))] == [2, 2]
    with pytest.raises(ValueError, match="a loop with collectives and an unknown trip count"):
        collectives(loop(1, "parameter(1)"))


def test_what_a_ring_sends():
    of = functools.partial(Collective, members=((0, 1, 2, 3),), bytes=400, count=1)
    assert [of(kind).sent(4) for kind in ("all-reduce", "all-gather", "reduce-scatter")] == [600, 300, 300]
    assert hlo.num_bytes("(bf16[4,8]{1,0:T(8,128)(2,1)}, f32[], /*index=2*/pred[3]{0}, s4[3], u32[]{:S(2)})") == 77


SUMS = """HloModule step
%add (a: f32[], b: f32[]) -> f32[] {
}
ENTRY %main (p: f32[8]) -> f32[8] {
  %all-reduce.1 = (f32[4,2]{1,0}, bf16[3]{0}, f32[]) all-reduce(%a, %b, %c), to_apply=%add
  %x = f32[4] fusion(%all-reduce.1)
  ROOT %y = s32[] all-reduce-start(%x), to_apply=%add
}
"""


def test_an_all_reduce_of_several_arrays_counts_them_all():
    assert [(c.kind, c.bytes, c.count) for c in collectives(SUMS)] == [
        ("all-reduce", 32 + 6 + 4, 1),
        ("all-reduce", 4, 1),
    ]
