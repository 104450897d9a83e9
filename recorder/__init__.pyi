from .jobs.effects import ablate as ablate
from .labels.profile import (
    MUTUAL_ATTENTION as MUTUAL_ATTENTION,
    REFERENCE_NETWORK as REFERENCE_NETWORK,
    KeyContext as KeyContext,
    LabelWarning as LabelWarning,
    Profile as Profile,
)
from .session.record import record as record
from .session.recording import (
    Recording as Recording,
    RecordingWarning as RecordingWarning,
    Statistics as Statistics,
)
