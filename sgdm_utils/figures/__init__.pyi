from .explorer import (
    explorer_data,
    explorer_eeg,
    gallery_columns,
    nearest_pictures,
    picture_sprites,
    scalp_sprites,
)
from .numbers import comparison_table, condition_table, p_text, readable_table, with_interval
from .page import Page
from .panels import (
    COLOURS,
    STAGE_COLOURS,
    brain_stages,
    ceiling_maps,
    draw_chance,
    evoked,
    ica_components,
    learning_curves,
    paired_bars,
    picture_grid,
    picture_rows,
    raw_excerpt,
    retrieval_bars,
    scalp_images,
    show_picture,
    similarity,
    spectra,
    structure_grid,
    use_style,
)
from .results import (
    CONDITIONS,
    SHORT,
    condition_dots,
    metric_label,
    mosaic,
    nearest_training,
    reliability_and_maps,
    runtime_bars,
    subject_dots,
)
