from . import leakage, splits
from .bids import EventMapping
from .readers import open_study, picture_folder, read_epochs, read_pictures, read_raw, require_form
from .tables import montage_info, natural_order
