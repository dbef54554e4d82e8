"""Recurrent networks against PyTorch, and exact under padding."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.errors import FieldError, UserError
from jaxnlp.nn.policy import Policy
from jaxnlp.nn.recurrent import GRU, LSTM, Recurrent

CELLS = {"lstm": LSTM(), "gru": GRU(), "projected": LSTM(projection_dim=3)}


def network(cell, **kw):
    return Recurrent(CELLS.get(cell, cell), 5, Policy(), **{"num_layers": 2, "bidirectional": True, **kw})


def init(module, x, seed=0):
    params = nn.meta.unbox(module.init(jax.random.key(seed), x))["params"]
    leaves, tree = jax.tree.flatten(params)
    noise = [jax.random.normal(k, x.shape) * 0.4 for k, x in zip(jax.random.split(jax.random.key(1), 40), leaves)]  # noqa: B905
    return tree.unflatten(noise)


def in_torch(torch, module, params, D):
    kind = torch.nn.GRU if isinstance(module.cell, GRU) else torch.nn.LSTM
    size = {} if module.cell.projection_dim is None else {"proj_size": module.cell.projection_dim}
    theirs = kind(D, 5, module.num_layers, bidirectional=module.bidirectional, batch_first=True, **size)
    with torch.no_grad():
        for name, p in params.items():
            at = name.replace("layer_", "l")
            flat = lambda w: torch.from_numpy(np.asarray(w).reshape(w.shape[0], -1).T.copy())
            getattr(theirs, f"weight_ih_{at}").copy_(flat(p["input"]["kernel"]))
            getattr(theirs, f"weight_hh_{at}").copy_(flat(p["hidden"]))
            getattr(theirs, f"bias_ih_{at}").copy_(torch.from_numpy(np.array(p["bias"]).reshape(-1)))
            hidden = np.asarray(p.get("hidden_bias", np.zeros_like(p["bias"])))
            getattr(theirs, f"bias_hh_{at}").copy_(torch.from_numpy(hidden.reshape(-1).copy()))
            if "projection" in p:
                getattr(theirs, f"weight_hr_{at}").copy_(torch.from_numpy(np.array(p["projection"]).T.copy()))
    return theirs


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_outputs_states_and_gradients_equal_torch(rng, cell, bidirectional):
    torch = pytest.importorskip("torch")
    x = rng.standard_normal((3, 7, 4)).astype(np.float32)
    lengths = [7, 2, 5]
    mask = np.arange(7)[None] < np.asarray(lengths)[:, None]
    module = network(cell, bidirectional=bidirectional)
    params = init(module, x)
    theirs = in_torch(torch, module, params, 4)
    x_torch = torch.from_numpy(x).requires_grad_()
    pack = torch.nn.utils.rnn.pack_padded_sequence(x_torch, torch.tensor(lengths), True, False)
    packed, last = theirs(pack)
    wanted, _ = torch.nn.utils.rnn.pad_packed_sequence(packed, batch_first=True)
    weight = rng.standard_normal(wanted.shape).astype(np.float32)
    (wanted * torch.from_numpy(weight)).sum().backward()

    run = lambda x: module.apply({"params": params}, x, jnp.asarray(mask))
    (outputs, states), grad = run(x), jax.grad(lambda x: (run(x)[0] * weight).sum())(x)
    np.testing.assert_allclose(outputs, wanted.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(grad, x_torch.grad.numpy(), atol=2e-5)
    last = last[::-1] if isinstance(last, tuple) else (last,)  # PyTorch's are (h, c)
    for i, wanted in enumerate(last):
        np.testing.assert_allclose(np.stack([state[i] for state in states]), wanted.detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_a_padded_row_equals_itself_alone_wherever_the_padding_is(rng, cell):
    x = jnp.asarray(rng.standard_normal((1, 4, 3)), jnp.float32)
    module = network(cell)
    params = {"params": init(module, x)}
    alone, states = module.apply(params, x)
    for before, after in [(0, 3), (2, 0), (1, 2)]:
        noise = lambda n: jnp.asarray(rng.standard_normal((1, n, 3)) * 9, jnp.float32)
        padded = jnp.concatenate([noise(before), x, noise(after)], 1)
        mask = jnp.asarray([[0] * before + [1] * 4 + [0] * after])
        out, padded_states = module.apply(params, padded, mask)
        np.testing.assert_allclose(out[:, before : before + 4], alone, atol=1e-6)
        assert not np.asarray(out)[:, np.asarray(mask[0]) == 0].any()
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), padded_states, states)


def test_states_continue_a_sequence(rng):
    x = jnp.asarray(rng.standard_normal((2, 9, 3)), jnp.float32)
    module = network("lstm", bidirectional=False)
    params = {"params": init(module, x)}
    whole, last = module.apply(params, x)
    first, states = module.apply(params, x[:, :4])
    second, states = module.apply(params, x[:, 4:], None, states)
    np.testing.assert_allclose(jnp.concatenate([first, second], 1), whole, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), states, last)
    with pytest.raises(UserError, match=r"got 1, expected 2"):
        module.apply(params, x, None, states[:1])


def test_clips_hold_and_dropout_is_between_layers(rng):
    x = jnp.asarray(rng.standard_normal((2, 9, 3)) * 20, jnp.float32)
    module = network(LSTM(projection_dim=4, cell_clip=0.1, projection_clip=0.02), dropout_rate=0.5)
    params = {"params": init(module, x)}
    out, states = module.apply(params, x)
    assert np.abs(np.asarray(out)).max() == pytest.approx(0.02)
    assert max(np.abs(np.asarray(c)).max() for c, _ in states) == pytest.approx(0.1)
    gru = network("gru", num_layers=1, dropout_rate=0.5)
    params = {"params": init(gru, x)}
    dropped, _ = gru.apply(params, x, deterministic=False, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_array_equal(dropped, gru.apply(params, x)[0])
    two = network("gru", dropout_rate=0.5)
    params = {"params": init(two, x)}
    dropped, _ = two.apply(params, x, deterministic=False, rngs={"dropout": jax.random.key(0)})
    assert not np.allclose(dropped, two.apply(params, x)[0])


def test_forget_gates_begin_open():
    params = network("lstm").init(jax.random.key(0), jnp.zeros((1, 2, 3)))["params"]
    np.testing.assert_array_equal(nn.meta.unbox(params)["layer_0"]["bias"], [[0] * 5, [1] * 5, [0] * 5, [0] * 5])


@pytest.mark.parametrize("field", ["cell_clip", "projection_dim", "projection_clip"])
def test_bad_fields_are_named(field):
    with pytest.raises(FieldError, match=field):
        LSTM(**{field: -1}).check()
    if field == "projection_clip":
        with pytest.raises(FieldError, match="set projection_dim"):
            LSTM(projection_clip=3.0).check()


@pytest.mark.parametrize("cell", CELLS)
def test_packed_sequences_equal_themselves_alone(rng, cell):
    a, b, c = (jnp.asarray(rng.standard_normal((1, n, 3)), jnp.float32) for n in (3, 4, 2))
    module = network(cell)
    params = {"params": init(module, a)}
    packed = jnp.concatenate([a, b, b[:, :1] * 9, c], 1)
    out, _ = module.apply(params, packed, jnp.asarray([[1] * 3 + [2] * 4 + [0] + [3] * 2]))
    alone = [module.apply(params, x)[0] for x in (a, b)] + [jnp.zeros_like(out[:, :1]), module.apply(params, c)[0]]
    np.testing.assert_allclose(out, jnp.concatenate(alone, 1), atol=1e-6)
