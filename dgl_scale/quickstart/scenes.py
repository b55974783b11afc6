"""The small world in symbols: things, scenes, their captions, and which split owns which pair.

Nothing here draws a pixel or touches a file. A *clip* shows one moving thing and then another; a
*still* shows one or two things side by side. Captions are written by a grammar from the scene, so a
caption is right by construction. Clips and stills share one vocabulary: in a still "first A then B"
says that A is left of B, in a clip it says that A comes earlier. A model trained on stills therefore
knows the words and the things, and not what happens in time.
"""

from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 225),
    "yellow": (240, 220, 50),
    "purple": (140, 50, 175),
    "orange": (245, 140, 30),
    "cyan": (50, 205, 215),
    "pink": (250, 150, 195),
}
LOGO_COLOUR = "white"
LOGO_RGB = (245, 245, 245)
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "diamond", "heart")

TEMPORAL_TEMPLATES = (
    "first {a} then {b}",
    "{a} before {b}",
    "{a} followed by {b}",
    "{a} and then {b}",
)
"""What a clip in which `a` comes before `b` may be called; in a still, `a` is left of `b`."""
HORIZONTAL_TEMPLATES = (
    "{a} left of {b}",
    "{a} on the left and {b} on the right",
    "{b} on the right and {a} on the left",
)
VERTICAL_TEMPLATES = (
    "{a} above {b}",
    "{a} at the top and {b} at the bottom",
    "{b} at the bottom and {a} at the top",
)
"""Wordings of stills where `a` is left of, or above, `b`. The explicit ones are what makes order
learnable: they tie a place to the thing beside the word, as a colour is tied to a shape. Once images
tell places, "a left of b" and "first a then b" have something to agree with. With "left of", "right
of", "before" and "after" alone, exchanged places stayed at chance for 1,350 steps."""
UNORDERED_TEMPLATE = "{a} and {b}"

FRAMES_PER_SECOND = 12
NUM_FRAMES_CHOICES = (20, 32, 36, 48)
"""Clip lengths (1.7 to 4.0 s). Whole thirds of a second: read back at 3 frames a second, a clip gives
5, 8, 9 or 12 frames under every rounding rule, and the four training segments (each a quarter of
them, rounded down) always reach into the second half, where the second thing is."""

PAIRS_PER_SPLIT: dict[Split, int] = {"train": 60, "validation": 100, "test": 100}
VARIANTS_PER_SPLIT: dict[Split, int] = {"train": 10, "validation": 1, "test": 1}
"""Few pairs and many variants for training, so that a batch often holds both orders of one pair:
that is what teaches order. Held-out splits have one variant: with two, two clips would share a caption
and neither could be ranked first for certain."""

SEVERAL_CAPTIONS_SHARE = 1 / 3
SIZE_RANGE = (0.24, 0.40)
LOGO_SIZE = 0.15


@dataclass(frozen=True, order=True)
class Thing:
    """One coloured shape."""

    colour: str
    shape: str

    @property
    def phrase(self) -> str:
        """The thing as a caption names it: "a red star", "an orange ring"."""
        article = "an" if self.colour[0] in "aeiou" else "a"
        return f"{article} {self.colour} {self.shape}"

    @property
    def rgb(self) -> tuple[int, int, int]:
        """Its colour, 0 to 255."""
        return LOGO_RGB if self.colour == LOGO_COLOUR else COLOURS[self.colour]


@dataclass(frozen=True)
class Motion:
    """A straight path of a thing's centre; positions and size are fractions of the image side."""

    start: tuple[float, float]
    end: tuple[float, float]
    size: float


@dataclass(frozen=True)
class Scene:
    """Everything that determines the frames of a clip: `first` is shown, then `second`."""

    first: Thing
    second: Thing
    first_motion: Motion
    second_motion: Motion
    num_frames: int
    switch: float
    """Fraction of the clip after which `second` replaces `first`."""
    background: tuple[int, int, int]
    logo: Thing
    logo_corner: int
    """0 to 3: top left, top right, bottom left, bottom right."""
    pixel_seed: int
    """Seeds texture and noise."""

    def reversed(self) -> "Scene":
        """Return the twin: the same things on the same paths, the other one first."""
        return Scene(
            self.second,
            self.first,
            self.second_motion,
            self.first_motion,
            self.num_frames,
            self.switch,
            self.background,
            self.logo,
            self.logo_corner,
            self.pixel_seed,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the scene as plain values that `json` can write."""
        return asdict(self)


@dataclass(frozen=True)
class Clip:
    """One video of the world before it is drawn."""

    video_id: str
    split: Split
    scene: Scene
    captions: tuple[str, ...]
    twin: str
    """`video_id` of the clip that differs in order only."""


@dataclass(frozen=True)
class Still:
    """One picture for pre-training: one or two things on a plain background, and its caption."""

    things: tuple[Thing, ...]
    centres: tuple[tuple[float, float], ...]
    sizes: tuple[float, ...]
    background: tuple[int, int, int]
    caption: str


def all_things() -> list[Thing]:
    """Return the 64 things a clip can show, in a fixed order."""
    return [Thing(colour, shape) for colour in COLOURS for shape in SHAPES]


def grammar_words() -> list[str]:
    """Return every word a caption can hold, sorted."""
    templates = (*TEMPORAL_TEMPLATES, *HORIZONTAL_TEMPLATES, *VERTICAL_TEMPLATES, UNORDERED_TEMPLATE)
    words = {word for template in templates for word in template.split() if "{" not in word}
    return sorted(words | {"a", "an", LOGO_COLOUR} | set(COLOURS) | set(SHAPES))


def split_pairs(seed: int) -> dict[Split, list[tuple[Thing, Thing]]]:
    """Give every split its own unordered pairs of things that differ in colour and in shape.

    A pair belongs to one split only, so no caption of one split can occur in another.
    """
    pairs = [(one, other) for one, other in combinations(all_things(), 2) if one.colour != other.colour and one.shape != other.shape]
    order = np.random.default_rng([seed, 0]).permutation(len(pairs))
    owned: dict[Split, list[tuple[Thing, Thing]]] = {}
    begin = 0
    for split in SPLITS:
        count = PAIRS_PER_SPLIT[split]
        owned[split] = [pairs[i] for i in order[begin : begin + count]]
        begin += count
    return owned


def plan_world(seed: int, *, scale: float = 1.0) -> list[Clip]:
    """Return every clip of the world, in the order of its annotation table.

    `scale` < 1 keeps the first pairs of each split (at least two), so a small world is a part of
    the large one: the clips they share are identical.
    """
    assert 0 < scale <= 1, scale
    pairs = split_pairs(seed)
    clips: list[Clip] = []
    for split in SPLITS:
        count = max(2, round(PAIRS_PER_SPLIT[split] * scale))
        for pair_idx, pair in enumerate(pairs[split][:count]):
            for variant in range(VARIANTS_PER_SPLIT[split]):
                clips += _twins(seed, split, pair_idx, pair, variant)
    return clips


def _twins(seed: int, split: Split, pair_idx: int, pair: tuple[Thing, Thing], variant: int) -> tuple[Clip, Clip]:
    """Return the two clips that show `pair` in either order and are otherwise the same."""
    rng = np.random.default_rng([seed, 1, SPLITS.index(split), pair_idx, variant])
    scene = _draw_scene(rng, *pair)
    templates = _draw_templates(rng)
    stem = f"{split}-{pair_idx:03d}-{variant:02d}"
    ids = (f"{stem}-forward", f"{stem}-backward")

    def clip(own: int, shown: Scene) -> Clip:
        captions = tuple(template.format(a=shown.first.phrase, b=shown.second.phrase) for template in templates)
        return Clip(ids[own], split, shown, captions, ids[1 - own])

    return clip(0, scene), clip(1, scene.reversed())


def _draw_templates(rng: np.random.Generator) -> tuple[str, ...]:
    """Return the plain wording, and for a part of the clips one or two others."""
    templates = [TEMPORAL_TEMPLATES[0]]
    if rng.random() < SEVERAL_CAPTIONS_SHARE:
        others = rng.permutation(len(TEMPORAL_TEMPLATES) - 1)[: rng.integers(1, 3)]
        templates += [TEMPORAL_TEMPLATES[1 + i] for i in others]
    return tuple(templates)


def _draw_scene(rng: np.random.Generator, first: Thing, second: Thing) -> Scene:
    shapes = [shape for shape in SHAPES if shape not in (first.shape, second.shape)]
    return Scene(
        first=first,
        second=second,
        first_motion=_draw_motion(rng),
        second_motion=_draw_motion(rng),
        num_frames=NUM_FRAMES_CHOICES[rng.integers(len(NUM_FRAMES_CHOICES))],
        switch=round(float(rng.uniform(0.42, 0.58)), 4),
        background=_draw_background(rng),
        logo=Thing(LOGO_COLOUR, shapes[rng.integers(len(shapes))]),
        logo_corner=int(rng.integers(4)),
        pixel_seed=int(rng.integers(2**31)),
    )


def _draw_motion(rng: np.random.Generator) -> Motion:
    """Return a path of a visible length (a quarter of the image at least) that stays inside."""
    size = round(float(rng.uniform(*SIZE_RANGE)), 4)
    while True:
        start, end = rng.uniform(size / 2, 1 - size / 2, size=(2, 2)).round(4)
        if np.hypot(*(end - start)) >= 0.25:
            return Motion((float(start[0]), float(start[1])), (float(end[0]), float(end[1])), size)


def _draw_background(rng: np.random.Generator) -> tuple[int, int, int]:
    """Return a muted colour, 0 to 255: grey of any dark to middle level with a slight tint."""
    level = rng.uniform(30, 125)
    red, green, blue = (int(v) for v in np.clip(level + rng.uniform(-15, 15, size=3), 0, 255))
    return red, green, blue


# Stills ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mixture:
    """What a batch of stills is made of."""

    singles: float = 0.2
    """Share of stills with one thing."""
    hard: float = 0.6
    """Share of the two-thing stills that come with a hard partner in the same batch."""
    exchanged_places: float = 0.6
    """Share of hard partners with places exchanged; the others have colours exchanged."""


CLEAR_OFFSET = 0.25
"""How far apart two centres must be along an axis before a caption may speak about that axis."""


def draw_stills(rng: np.random.Generator, count: int, mixture: Mixture | None = None) -> list[Still]:
    """Return one batch of stills: single ones, then hard partners side by side, then the rest.

    A hard partner has the places or the colours exchanged and the caption to match. Without such
    partners in a batch the text tower learns to ignore word order: naming the things is enough.
    """
    mixture = mixture or Mixture()
    singles, num_partners = count_stills(count, mixture)
    stills = [_draw_single(rng) for _ in range(singles)]
    for _ in range(num_partners):
        stills += _draw_hard_partners(rng, mixture.exchanged_places)
    while len(stills) < count:
        stills.append(_draw_double(rng, ordered=False)[0])
    return stills


def count_stills(count: int, mixture: Mixture) -> tuple[int, int]:
    """Return how many single stills, and how many pairs of hard partners, a batch of `count` has."""
    singles = round(count * mixture.singles)
    return singles, round((count - singles) * mixture.hard) // 2


def _draw_still_thing(rng: np.random.Generator) -> Thing:
    """Return any thing of a clip, or now and then (1 in 12) one in the colour of the logos."""
    colours = list(COLOURS)
    colour = LOGO_COLOUR if rng.random() < 1 / 12 else colours[rng.integers(len(colours))]
    return Thing(colour, SHAPES[rng.integers(len(SHAPES))])


def _draw_single(rng: np.random.Generator) -> Still:
    thing = _draw_still_thing(rng)
    size = float(rng.uniform(*SIZE_RANGE))
    x, y = rng.uniform(size / 2, 1 - size / 2, size=2)
    return Still((thing,), ((x, y),), (size,), _draw_background(rng), thing.phrase)


def _draw_double(rng: np.random.Generator, *, ordered: bool) -> tuple[Still, str]:
    """Return a still of two things, and the template its caption fills in (a, b) order."""
    first = _draw_still_thing(rng)
    second = _draw_still_thing(rng)
    while second.colour == first.colour or second.shape == first.shape:
        second = _draw_still_thing(rng)
    sizes = tuple(float(s) for s in rng.uniform(*SIZE_RANGE, size=2))
    margin = max(sizes) / 2  # the larger one's, so that the two may exchange places
    while True:
        centres = rng.uniform(margin, 1 - margin, size=(2, 2))
        dx, dy = centres[1] - centres[0]
        if max(abs(dx), abs(dy)) >= max(CLEAR_OFFSET, 2 * margin):
            break
    template = _draw_spatial_template(rng, dx, dy, ordered)
    things, places = (first, second), ((centres[0][0], centres[0][1]), (centres[1][0], centres[1][1]))
    caption = template.format(a=first.phrase, b=second.phrase)
    return Still(things, places, (sizes[0], sizes[1]), _draw_background(rng), caption), template


def _draw_spatial_template(rng: np.random.Generator, dx: float, dy: float, ordered: bool) -> str:
    """Return a wording that is true of a thing `a` and a thing `b` at (dx, dy) from it."""
    axes: list[tuple[str, ...]] = [] if ordered else [(UNORDERED_TEMPLATE,)]
    if abs(dx) >= CLEAR_OFFSET:
        axes += [_oriented(HORIZONTAL_TEMPLATES, dx), *[_oriented(TEMPORAL_TEMPLATES, dx)] * 2]
    if abs(dy) >= CLEAR_OFFSET:
        axes.append(_oriented(VERTICAL_TEMPLATES, dy))
    wordings = axes[rng.integers(len(axes))]
    return wordings[rng.integers(len(wordings))]


def _oriented(templates: tuple[str, ...], offset: float) -> tuple[str, ...]:
    """Return the templates, with `a` and `b` exchanged where b does not follow a on the axis."""
    if offset > 0:
        return templates
    return tuple(template.format(a="{b}", b="{a}") for template in templates)


def _draw_hard_partners(rng: np.random.Generator, exchanged_places: float) -> tuple[Still, Still]:
    still, template = _draw_double(rng, ordered=True)
    first, second = still.things
    recoloured = (Thing(second.colour, first.shape), Thing(first.colour, second.shape))
    things = (second, first) if rng.random() < exchanged_places else recoloured
    caption = template.format(a=things[0].phrase, b=things[1].phrase)
    return still, Still(things, still.centres, still.sizes, _draw_background(rng), caption)
