from . import forward
from .clip import (
    CLIP_MEAN,
    CLIP_STD,
    clip_features,
    clip_pixels,
    create_clip,
    image_features,
    load_clip,
    save_clip,
    text_features,
    tiny_clip_config,
    tokenizer_for,
    used_tokens,
)
from .encoders import SGDMEncoder, SpatialAttention
from .features import load_features, save_features
from .structure import (
    N_PARTS,
    StructureVAE,
    part_iou,
    part_loss,
    part_map,
    relation_loss,
    relation_matrix,
)
from .trained import (
    Targets,
    clip_embedder,
    clip_label,
    load_part,
    open_architecture,
    open_clip_model,
    open_encoder,
    open_structure_vae,
    open_targets,
    save_weights,
)
from .training import cosine_schedule, embed, keep_electrodes, training_dtype
