"""Image super-resolution networks of Table 1: one file each, common parts in ``csist.networks.sr.blocks`` (book part "Results")."""
from csist.networks.sr.actnet import Actnet
from csist.networks.sr.cfgn import Cfgn
from csist.networks.sr.ctnet import Ctnet
from csist.networks.sr.dctlsa import Dctlsa
from csist.networks.sr.edsr import Edsr
from csist.networks.sr.egasr import Egasr
from csist.networks.sr.fenet import Fenet
from csist.networks.sr.han import Han
from csist.networks.sr.hit_sr import HitSir, HitSng, HitSrf
from csist.networks.sr.rcan import Rcan
from csist.networks.sr.rdn import Rdn
from csist.networks.sr.san import San
from csist.networks.sr.srcnn import Srcnn
from csist.networks.sr.srfbn import Srfbn

SUPER_RESOLUTION = {
    "actnet": Actnet,
    "cfgn": Cfgn,
    "ctnet": Ctnet,
    "dctlsa": Dctlsa,
    "edsr": Edsr,
    "egasr": Egasr,
    "fenet": Fenet,
    "han": Han,
    "hit-sir": HitSir,
    "hit-sng": HitSng,
    "hit-srf": HitSrf,
    "rcan": Rcan,
    "rdn": Rdn,
    "san": San,
    "srcnn": Srcnn,
    "srfbn": Srfbn,
}
