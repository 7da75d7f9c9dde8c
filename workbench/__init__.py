"""Liver Workbench: the hybrid method of arXiv 2512.07574, stage by stage, in the open.

    liver         2.5D network, whole field of view             -> liver probability map
    tumor         2.5D network in the liver's box               -> tumor probability map
    consistency   three-slice rule                              -> refined mask
    candidates    connected pieces inside the liver             -> candidate lesions
    radiomics     intensity, texture, shape, boundary, wavelet  -> 728 descriptors a candidate
    selection     stability, redundancy, relevance              -> 20 descriptors
    forest        random forest                                 -> false positives rejected
    boundary      3D patch network on a narrow band             -> contour relabelled
    metrics       LiTS's definitions                            -> what each stage is worth
    pipeline      all of it in order, with a ledger of every voxel's decision

Research use only: not a medical device.
"""

import sys

__version__ = "0.1.0"
sys.modules[f"{__name__}.served"] = sys.modules[
    __name__
]  # where 0.1.0 had `_load_pyfunc`, by the name in the models that it logged


def _load_pyfunc(path: str) -> object:
    """A logged model, as MLflow asks for it."""
    from pkgutil import resolve_name  # by name: the rooms must not rest on one another through here

    return resolve_name("workbench.run.served:load")(path)
