from .explorer.report import write_report as write_report
from .explorer.widget import explore as explore
from .figures.plot import plot as plot
from .integrity.content import content_id as content_id
from .integrity.diff import (
    Difference as Difference,
    diff as diff,
)
from .integrity.repair import repair as repair
from .integrity.verify import verify as verify
from .maps.attribution import (
    attribution_map as attribution_map,
    hlam as hlam,
    level_maps as level_maps,
    llam as llam,
    tlam as tlam,
    ulam as ulam,
)
from .maps.i2am import as_published as as_published
from .maps.marginals import marginals as marginals
from .maps.precompute import (
    keep_effects as keep_effects,
    precompute as precompute,
)
from .maps.resampler import resampler_shares as resampler_shares
from .maps.sram import sram as sram
from .maps.tokens import token_map as token_map
from .scores.boxes import (
    Box as Box,
    bounding_box as bounding_box,
    iou as iou,
)
from .scores.correspondence import (
    correspondence as correspondence,
    correspondence_error as correspondence_error,
    pck as pck,
)
from .scores.effects import effects as effects
from .scores.matches import (
    Matches as Matches,
    match_pictures as match_pictures,
)
from .scores.measures import (
    agreement as agreement,
    drift as drift,
    effective_tokens as effective_tokens,
    entropy as entropy,
    imacs as imacs,
    mass as mass,
)
from .scores.pictures import (
    psnr as psnr,
    ssim as ssim,
)
from .scores.trace_scores import score_trace as score_trace
from .sharing.archive import unpack as unpack
from .sharing.pack import pack as pack
from .studies.atlas import (
    Atlas as Atlas,
    AtlasSettings as AtlasSettings,
    atlas as atlas,
    best_heads as best_heads,
)
from .studies.detect import (
    Detection as Detection,
    Detections as Detections,
    detect as detect,
    read_boxes as read_boxes,
)
from .trace.trace import (
    Trace as Trace,
    open_trace as open_trace,
)
from .trace.traces import (
    Traces as Traces,
    open_traces as open_traces,
)
