from .assertions import audit
from .copies import assert_pictures
from .fits import (
    FitRecord,
    LeakageError,
    assert_fitted_on,
    read_records,
    record_choice,
    record_fit,
    write_records,
)
