from .labels.profile import (
    MUTUAL_ATTENTION as MUTUAL_ATTENTION,
    REFERENCE_NETWORK as REFERENCE_NETWORK,
    KeyContext as KeyContext,
    LabelWarning as LabelWarning,
    Profile as Profile,
)
from .session.record import (
    Recording as Recording,
    RecordingWarning as RecordingWarning,
    Statistics as Statistics,
    record as record,
)
