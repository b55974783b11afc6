"""Draws docs/architecture.svg from the layers in pyproject.toml and the imports of the code: `python docs/draw_architecture.py`."""

import ast
import tomllib
from collections.abc import Iterator
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "architecture.svg"

# Module to the name that people know it by.
_ENGINES = {
    "av": "PyAV",
    "decord": "decord",
    "deepspeed": "DeepSpeed",
    "fsspec": "fsspec",
    "open_clip": "open_clip",
    "pyarrow": "Arrow",
    "pydantic": "pydantic",
    "ray": "Ray",
    "tensorboard": "TensorBoard",
    "webdataset": "WebDataset",
}
_ROW, _GAP, _LEFT, _WIDTH, _SIDE = 52, 9, 12, 800, 210


def draw() -> str:
    """The picture as SVG: a row a layer, the engines that each part imports, and `shard_tools` beside them with what it shares."""
    layers = _layers()
    height = len(layers) * (_ROW + _GAP) + 60
    width = _LEFT * 3 + _WIDTH + _SIDE
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13">',
        "<title>Layers of dgl_scale: each imports only from those below it</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        _text(_LEFT, 24, "dgl_scale: a part imports only from the rows below it", size=15),
    ]
    for row, names in enumerate(layers):
        box = (_WIDTH - _GAP * (len(names) - 1)) / len(names)
        for column, name in enumerate(names):
            sources = _sources("dgl_scale", name)
            engines = ", ".join(_engines(sources))
            x, y = _LEFT + column * (box + _GAP), 40 + row * (_ROW + _GAP)
            if len(names) > 2:  # no room for more than the engines
                parts += _box(x, y, box, _ROW, name, [engines])
            else:
                parts += _box(x, y, box, _ROW, name, [_purpose(sources, int(box / 6.3))])
                parts.append(_text(x + box - 8, y + 20, engines, size=13, anchor="end"))
    parts += _shard_tools(layers)
    return "\n".join([*parts, "</svg>", ""])


def _shard_tools(layers: list[list[str]]) -> list[str]:
    imported = set(_imported(_sources("shard_tools", None), package="dgl_scale"))
    shared = [name for names in layers for name in names if name in imported]
    engines = _engines(_sources("shard_tools", None))
    lines = ["on its own, without torch:", *engines, "", "of dgl_scale it imports", *shared]
    return _box(_LEFT * 2 + _WIDTH, 40, _SIDE, len(lines) * 19 + 40, "shard_tools", lines, colour="#fff3e0")


def _layers() -> list[list[str]]:
    with (ROOT / "pyproject.toml").open("rb") as stream:
        contracts = tomllib.load(stream)["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [[name.strip() for name in layer.split("|")] for layer in layers]


def _sources(package: str, name: str | None) -> list[Path]:
    """The files of a part, or of the whole package."""
    folder = ROOT / package
    if name is None:
        return sorted(folder.rglob("*.py"))
    return [folder / f"{name}.py"] if (folder / f"{name}.py").is_file() else sorted((folder / name).rglob("*.py"))


def _imported(sources: list[Path], package: str | None = None) -> Iterator[str]:
    """First parts of all imported modules' names, wherever in a file they are imported; of `package`, the second parts."""
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):  # `import_open_clip` stands for open_clip
                names += [alias.name.removeprefix("import_") for alias in node.names if alias.name.startswith("import_")]
            for name in names:
                first, _, rest = name.partition(".")
                if package is None:
                    yield first
                elif first == package:
                    yield rest.partition(".")[0]


def _engines(sources: list[Path]) -> list[str]:
    return sorted({_ENGINES[module] for module in _imported(sources) if module in _ENGINES}, key=str.lower)


def _purpose(sources: list[Path], letters: int) -> str:
    """The first line of a module's docstring, as much of it as has room; nothing for a package."""
    if len(sources) > 1:
        return ""
    line = (ast.get_docstring(ast.parse(sources[0].read_text(encoding="utf-8"))) or "").partition("\n")[0].replace("`", "")
    return line if len(line) <= letters else line[: letters - 1].rpartition(" ")[0] + " …"


def _box(x: float, y: float, width: float, height: float, name: str, lines: list[str], colour: str = "#e8eaf6") -> list[str]:
    parts = [f'<rect x="{x:.0f}" y="{y}" width="{width:.0f}" height="{height}" rx="5" fill="{colour}" stroke="#7986cb"/>']
    parts.append(_text(x + 8, y + 20, name, size=15, weight="bold"))
    return [*parts, *(_text(x + 8, y + 41 + 19 * i, line, size=13) for i, line in enumerate(lines) if line)]


def _text(x: float, y: float, text: str, *, size: int, weight: str = "normal", anchor: str = "start") -> str:
    look = f'font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" fill="#1a237e"'
    return f'<text x="{x:.0f}" y="{y:.0f}" {look}>{escape(text)}</text>'


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
