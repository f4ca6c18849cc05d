from . import (
    ablation,
    attribution,
    effects,
    human_test,
    ideal_decoder,
    low_density,
    nice_encoder,
    prior,
    regions,
    repetitions,
    training_seeds,
    variance,
)
