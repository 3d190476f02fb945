"""Short programs for the model card that run an exported file on one image."""

from pathlib import Path

from edkd.dataset import dataset_dict
from edkd.engine.saved_run import as_option
from edkd.export.source import Source
from edkd.models import is_of_plugin
from edkd.types import InputSpec

_FILTERS = {"nearest": "NEAREST", "bilinear": "BILINEAR", "bicubic": "BICUBIC"}


def how_to_load(source: Source, path: Path, form: str) -> str:
    """A program that prints the class of `photo.jpg`."""
    imports, load = _LOADERS[form](source, path)

    lines = [
        *imports,
        "",
        *_pixels(source.input),
        *load,
        *_answer(source, path, form),
    ]
    code = "\n".join(lines)
    return f"```python\n{code}\n```"


def _pixels(spec: InputSpec) -> list[str]:
    """Lines that make `x`, (1,3,H,W), from an image."""
    height, width = spec.size
    mode = f"Image.{_FILTERS[spec.interpolation]}"
    lines = ['image = Image.open("photo.jpg").convert("RGB")']

    if not spec.resize:
        lines.append(f"image = image.resize(({width}, {height}), {mode})")
    else:
        lines += [
            f"sides = [{spec.resize} * side // min(image.size) for side in image.size]",
            f"left, top = round((sides[0] - {width}) / 2), round((sides[1] - {height}) / 2)",
            f"image = image.resize(sides, {mode})",
            f"image = image.crop((left, top, left + {width}, top + {height}))",
        ]

    if spec.padded_from:
        left, top, right, below = spec.padding
        box = (-left, -top, width + right, height + below)
        lines.append(f"image = image.crop({box})  # with black pixels on all sides")

    mean, std = list(spec.mean), list(spec.std)
    lines.append(f"x = ((np.asarray(image) / 255 - {mean}) / {std}).astype(np.float32)")
    lines.append("x = x.transpose(2, 0, 1)[None]")
    return lines


def _onnx(source: Source, path: Path) -> tuple[list[str], list[str]]:
    imports = ["import json, numpy as np, onnxruntime", "from PIL import Image"]
    return imports, [
        f'session = onnxruntime.InferenceSession("{path.name}")',
        'logits = session.run(["logits"], {"image": x})[0][0]',
    ]


def _program(source: Source, path: Path) -> tuple[list[str], list[str]]:
    imports = ["import json, numpy as np, torch", "from PIL import Image"]
    return imports, [
        'extra = {"edkd.json": ""}',
        f'program = torch.export.load("{path.name}", extra_files=extra)',
        "logits = program.module()(torch.from_numpy(x))[0].detach().numpy()",
    ]


def _safetensors(source: Source, path: Path) -> tuple[list[str], list[str]]:
    facts = source.facts
    family = dataset_dict[facts.dataset].family
    name, number = facts.architecture, facts.num_classes
    with_config, cfg = _config(source, family)

    imports = [
        "import json, numpy as np, torch",
        "from PIL import Image",
        "from safetensors import safe_open",
        "from safetensors.torch import load_file",
        "from edkd.models import get_model",
    ]
    return imports, [
        *with_config,
        f'model = get_model("{family}", "{name}", {number}{cfg}).eval()',
        f'model.load_state_dict(load_file("{path.name}"))',
        "logits = model(torch.from_numpy(x))[0][0].detach().numpy()",
    ]


def _config(source: Source, family: str) -> tuple[list[str], str]:
    """Lines that import the plugin of a model and set its keys, and the argument that follows.

    Both are empty where the model needs neither.
    """
    facts = source.facts
    plugins = []
    if is_of_plugin(family, facts.architecture):
        plugins = [Path(plugin).name for plugin in source.plugins]
    if not plugins and not facts.model_keys:
        return [], ""

    words = []
    for key, value in facts.model_keys.items():
        words += [key, as_option(value)]
    note = f"  # needs {', '.join(plugins)}" if plugins else ""
    lines = [
        "from edkd import load_config",
        f"cfg = load_config(opts={words}, plugins={plugins}){note}",
    ]
    return lines, ", cfg"


def _answer(source: Source, path: Path, form: str) -> list[str]:
    """Lines that print the class."""
    if not source.facts.class_names:
        return ["print(logits.argmax())"]

    texts = {
        "onnx": "session.get_modelmeta().custom_metadata_map",
        "torch-export": 'json.loads(extra["edkd.json"])',
        "safetensors": f'safe_open("{path.name}", "pt").metadata()',
    }[form]
    return [f'names = json.loads({texts}["class_names"])', "print(names[logits.argmax()])"]


_LOADERS = {"onnx": _onnx, "torch-export": _program, "safetensors": _safetensors}
