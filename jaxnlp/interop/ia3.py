"""(IA)^3 in PEFT's layout: scales of a module's outputs (out, 1), or of its inputs (1, in)."""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxnlp.errors import UserError
from jaxnlp.interop.module_names import WEIGHTS, HFModule, inputs_of, outputs_of, patterns
from jaxnlp.peft.ia3 import IA3, IN, OUT


def read(
    fields: Mapping[str, Any], modules: Any, sizes: Any, folder: pathlib.Path
) -> tuple[IA3, dict[Any, np.ndarray]]:
    """(method, tuned leaves by path of an unrolled model).

    Args:
        fields: adapter_config.json. modules: {module: (hf_module, {leaf: array})} from the file.
        sizes: our parameters' shapes by path. folder: the adapter's, for error messages.

    Raises:
        UserError: the number of scales does not fit the model.
    """
    leaves, outs, ins = {}, [], []
    for hf_module, arrays in modules.values():
        scale = arrays["ia3_l"]
        scales_inputs = scale.ndim == 2 and scale.shape[0] == 1
        inputs, parts = inputs_of(hf_module, sizes), outputs_of(hf_module, sizes)
        num_scales = math.prod(inputs) if scales_inputs else sum(map(math.prod, parts))
        if scale.size != num_scales:
            raise UserError(
                f"{folder / WEIGHTS}: module {hf_module.name} has {scale.size} scales; expected {num_scales}"
            )
        starts = np.cumsum([0, *map(math.prod, parts)])
        for i, (path, out) in enumerate(zip(hf_module.paths, parts, strict=True)):
            if scales_inputs:
                leaves[*path, IN] = np.ascontiguousarray(scale.reshape(inputs), np.float32)
                ins.append("/".join(path))
            else:
                part = scale.reshape(-1)[starts[i] : starts[i + 1]].reshape(out)
                leaves[*path, OUT] = np.ascontiguousarray(part, np.float32)
                outs.append("/".join(path))
    return IA3(outputs=patterns(outs, sizes), inputs=patterns(ins, sizes)), leaves


def write(flat: Any, hf_modules: Mapping[str, HFModule]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(adapter_config.json, tensors by name).

    Args:
        flat: tuned leaves by path of an unrolled model. hf_modules: PEFT's modules by name.

    Raises:
        UserError: PEFT has no equivalent: a module with scales of both inputs and outputs, or scales of the inputs of
            one of several modules that share a matrix.
    """
    arrays, targets, input_targets = {}, [], []
    for hf_module in hf_modules.values():
        names = ["/".join(path) for path in hf_module.paths]
        outs = [flat.get(f"{name}/{OUT}") for name in names]
        ins = [flat.get(f"{name}/{IN}") for name in names]
        if any(x is not None for x in ins):
            if any(x is not None for x in outs) or len(names) > 1:
                raise UserError(f"{hf_module.name}: PEFT has no equivalent of scales of both inputs and outputs")
            arrays[f"{hf_module.name}.ia3_l"] = np.asarray(ins[0]).reshape(1, -1)
            input_targets.append(hf_module.name)
        elif any(x is not None for x in outs):
            first = next(x for x in outs if x is not None)
            full = [np.ones_like(first) if x is None else x for x in outs]
            arrays[f"{hf_module.name}.ia3_l"] = np.concatenate([x.reshape(-1) for x in full])[:, None]
        else:
            continue
        targets.append(hf_module.name)
    conv = any(hf_modules[name].tensor.kind == "conv1d" for name in targets)
    fields = {"peft_type": "IA3", "target_modules": targets, "feedforward_modules": input_targets}
    fields["fan_in_fan_out"] = conv
    return fields, arrays
