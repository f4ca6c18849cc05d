"""A model card beside a saved pipeline: what it is, how to call it, what it must not be used for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard, ModelCardData

from sgdm_utils.workflow import atomic

_CARD = """---
{{ card_data }}
---
# SGDM: pictures from EEG

Structure-guided diffusion after Lian et al. (2026), arXiv:2604.22649, re-implemented.

```python
from sgdm_utils.generation.pipeline import SGDMPipeline

pipe = SGDMPipeline.from_pretrained("model")
out = pipe(eeg, electrodes={{ electrodes }}, subject={{ subject }}, generator=torch.Generator().manual_seed(0))
out.images, out.maps, out.neighbours
```

{{ people }}

| component | class | parameters |
|---|---|---|
{{ parts }}

## Facts of this training

{{ facts }}

## Limits

{{ limits }}
"""


def write_model_card(
    folder: Path, pipe: DiffusionPipeline, facts: Mapping[str, Any], limits: str
) -> Path:
    """Write `README.md` into the folder of a saved pipeline.

    Parameters
    ----------
    folder : Path, where `save_pretrained` wrote
    pipe : SGDMPipeline, its components are counted
    facts : mapping of str to what is printed: training data, seed, validation scores
    limits : str, what the numbers do not show

    Returns
    -------
    Path of the card
    """
    parts = []
    for name in sorted(pipe.config):
        part = getattr(pipe, name, None)
        if hasattr(part, "parameters"):
            n = sum(p.numel() for p in part.parameters())
            parts.append(f"| {name} | {type(part).__name__} | {n:,} |")
    decoder = pipe.decoder
    electrodes, subject, people = "names", None, ""
    if decoder is not None:
        names = decoder.config.channels
        electrodes = "[" + ", ".join(repr(n) for n in names[:3]) + ", ...]"
        subject = decoder.config.subjects[0]
        people = (
            f"Expects epochs of shape (batch, n_chans, {decoder.meaning.n_times}) at "
            f"{decoder.meaning.sfreq:g} Hz, preprocessed as notebook 01 does. Trained on "
            f"{len(decoder.config.subjects)} people with {len(names)} electrodes; electrodes enter by "
            "position, so fewer or others are accepted, and None stands for a person it has not seen. "
            "Its noise levels were measured with all electrodes."
        )
    card = ModelCard.from_template(
        ModelCardData(library_name="diffusers", tags=["eeg", "image-reconstruction"]),
        template_str=_CARD,
        electrodes=electrodes,
        subject=repr(subject),
        people=people,
        parts="\n".join(parts),
        facts="\n".join(f"- {name}: {value}" for name, value in facts.items()),
        limits=limits,
    )
    with atomic.atomic_file(folder / "README.md") as part:
        card.save(part)
    return folder / "README.md"
