"""A second GPT-2, in NumPy and float64: a checkpoint's arrays and token ids in; logits, loss and gradients out.

It shares no line and no layout with the package: names are those of Hugging Face's GPT-2 without their
`transformer.` prefix, and Conv1D weights are (in, out). Its gradients are written by hand; a test holds them against
finite differences. `numbers` is any object with the fields of `config.json`.

Letters: B rows, T tokens, S keys, D model, H heads, K head dim, V vocabulary (unpadded).

Source: Radford et al. 2019, with Hendrycks & Gimpel 2016 for GELU.
"""

import math

import numpy as np

_erf = np.vectorize(math.erf, otypes=[np.float64])


def checkpoint(tensors):
    """HF-named arrays → float64 arrays without the prefix; a tied head is the token embedding."""
    arrays = {name.removeprefix("transformer."): np.asarray(x, np.float64) for name, x in tensors.items()}
    return {"lm_head.weight": arrays["wte.weight"], **arrays}


def relative_error(ours, theirs) -> float:
    """The largest difference, in units of the largest number: one wrong element is not averaged away."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, f"shapes {ours.shape} and {theirs.shape}"
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def tensor_error(ours, theirs) -> float:
    """The norm of the difference, in units of the norm: for gradients, where one tensor spans many magnitudes."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, f"shapes {ours.shape} and {theirs.shape}"
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def activate(name, x):
    """The activation and its derivative."""
    if name in ("gelu_new", "gelu_pytorch_tanh"):
        c = math.sqrt(2 / math.pi)
        tanh = np.tanh(c * (x + 0.044715 * x**3))
        slope = 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh**2) * c * (1 + 3 * 0.044715 * x**2)
        return 0.5 * x * (1 + tanh), slope
    if name == "gelu":
        normal = 0.5 * (1 + _erf(x / math.sqrt(2)))
        return x * normal, normal + x * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    if name == "relu":
        return np.maximum(x, 0), (x > 0).astype(np.float64)
    sigmoid = 1 / (1 + np.exp(-x))
    return x * sigmoid, sigmoid * (1 + x * (1 - sigmoid))  # silu


# Each part returns its output and a function: the gradient of its output → the gradient of its input. On the way that
# function adds the parameters' gradients to `grads`, by name.


def linear(w, name, x):
    def back(g, grads):
        grads[f"{name}.weight"] = np.einsum("bti,bto->io", x, g)
        grads[f"{name}.bias"] = g.sum((0, 1))
        return g @ w[f"{name}.weight"].T

    return x @ w[f"{name}.weight"] + w[f"{name}.bias"], back


def layer_norm(w, name, x, epsilon):
    centred = x - x.mean(-1, keepdims=True)
    root = np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    normed = centred / root

    def back(g, grads):
        grads[f"{name}.weight"], grads[f"{name}.bias"] = (g * normed).sum((0, 1)), g.sum((0, 1))
        g = g * w[f"{name}.weight"]
        return (g - g.mean(-1, keepdims=True) - normed * (g * normed).mean(-1, keepdims=True)) / root

    return normed * w[f"{name}.weight"] + w[f"{name}.bias"], back


def attention(w, name, x, numbers, layer, ahead=0):
    """Causal self-attention; `ahead` plants a bug: how many later tokens a query sees."""
    b, t, d = x.shape
    h = numbers.n_head
    scale = (d // h) ** -0.5 if numbers.scale_attn_weights else 1.0
    scale /= layer + 1 if numbers.scale_attn_by_inverse_layer_idx else 1

    def split(y):
        return y.reshape(b, t, h, d // h).transpose(0, 2, 1, 3)

    qkv, back_in = linear(w, f"{name}.c_attn", x)
    q, k, v = (split(part) for part in np.split(qkv, 3, axis=-1))
    scores = np.where(np.tri(t, k=ahead, dtype=bool), scale * q @ k.transpose(0, 1, 3, 2), -np.inf)
    probs = np.exp(scores - scores.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    y, back_out = linear(w, f"{name}.c_proj", (probs @ v).transpose(0, 2, 1, 3).reshape(b, t, d))

    def back(g, grads):
        g = split(back_out(g, grads))
        g_probs, g_v = g @ v.transpose(0, 1, 3, 2), probs.transpose(0, 1, 3, 2) @ g
        g_scores = scale * probs * (g_probs - (g_probs * probs).sum(-1, keepdims=True))
        parts = (g_scores @ k, g_scores.transpose(0, 1, 3, 2) @ q, g_v)
        g_qkv = np.concatenate([part.transpose(0, 2, 1, 3).reshape(b, t, d) for part in parts], axis=-1)
        return back_in(g_qkv, grads)

    return y, back


def mlp(w, name, x, numbers):
    inner, back_in = linear(w, f"{name}.c_fc", x)
    active, slope = activate(numbers.activation_function, inner)
    y, back_out = linear(w, f"{name}.c_proj", active)
    return y, lambda g, grads: back_in(back_out(g, grads) * slope, grads)


def block(w, name, x, numbers, layer, ahead=0):
    normed_1, back_1 = layer_norm(w, f"{name}.ln_1", x, numbers.layer_norm_epsilon)
    y, back_attention = attention(w, f"{name}.attn", normed_1, numbers, layer, ahead)
    middle = x + y
    normed_2, back_2 = layer_norm(w, f"{name}.ln_2", middle, numbers.layer_norm_epsilon)
    z, back_mlp = mlp(w, f"{name}.mlp", normed_2, numbers)

    def back(g, grads):
        g = g + back_2(back_mlp(g, grads), grads)
        return g + back_1(back_attention(g, grads), grads)

    return middle + z, back


def embed(w, tokens):
    return w["wte.weight"][tokens] + w["wpe.weight"][: tokens.shape[1]]


def run(w, numbers, tokens, ahead=0):
    """Logits (B, T, V) and their way back: gradient of the logits → every parameter's gradient."""
    x, backs = embed(w, tokens), []
    for layer in range(numbers.n_layer):
        x, back = block(w, f"h.{layer}", x, numbers, layer, ahead)
        backs.append(back)
    x, back = layer_norm(w, "ln_f", x, numbers.layer_norm_epsilon)
    backs.append(back)

    def all_back(g):
        grads = {"lm_head.weight": np.einsum("btv,btd->vd", g, x)}
        g = g @ w["lm_head.weight"]
        for back in reversed(backs):
            g = back(g, grads)
        grads["wte.weight"], grads["wpe.weight"] = np.zeros_like(w["wte.weight"]), np.zeros_like(w["wpe.weight"])
        np.add.at(grads["wte.weight"], tokens, g)
        grads["wpe.weight"][: tokens.shape[1]] = g.sum(0)
        if numbers.tie_word_embeddings:
            grads["wte.weight"] += grads.pop("lm_head.weight")
        return grads

    return x @ w["lm_head.weight"].T, all_back


def logits(w, numbers, tokens, ahead=0):
    return run(w, numbers, tokens, ahead)[0]


def loss_and_gradients(w, numbers, tokens, weights):
    """Σ weight · −log p / Σ weight, the first token of a row apart; and its gradient by every parameter's name."""
    out, back = run(w, numbers, tokens)
    out = out[:, :-1]
    probs = np.exp(out - out.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    share = weights[:, 1:] / weights[:, 1:].sum()
    picked = np.take_along_axis(probs, tokens[:, 1:, None], axis=-1)[..., 0]
    g = probs - np.eye(probs.shape[-1])[tokens[:, 1:]]
    return -(share * np.log(picked)).sum(), back(np.pad(g * share[..., None], ((0, 0), (0, 1), (0, 0))))
