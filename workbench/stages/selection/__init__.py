"""From the 728 descriptors to 20: stable, not redundant, informative, each with its reason.

States (Li et al., arXiv 2512.07574): a multi-strategy selection leaves 20 stable, highly informative features.

Chooses:
1. *defined*: a feature that is missing for too many lesions, or the same for all, leaves.
2. *stable*: every feature is computed again under perturbations of image and mask (Zwanenburg et al. 2019,
   10.1038/s41598-018-36938-4). ICC(2,1) over the systematic ones (each perturbation is a rater with a shift of its
   own), ICC(1,1) over the random ones (repeats are interchangeable); the unperturbed value is one more repeat of
   both. A feature stays when the lower ends of both 95 % intervals reach the bound (Shrout & Fleiss 1979; McGraw &
   Wong 1996). If too few uncorrelated features are left to choose from, the bound is lowered step by step; the
   reason of a feature that is kept only so says it.
3. *not redundant*: complete linkage on 1 - |Spearman rho|, so any two members of a cluster correlate at least as
   stated; the most stable member stands for its cluster. The target is not looked at up to here, so that this part
   cannot overfit to it.
4. *relevant*: three strategies rank the representatives, and a Borda count joins the ranks: mRMR on mutual
   information (Peng et al. 2005), L1-logistic stability selection on halves of the patients (Meinshausen & Bühlmann
   2010), and permutation importance of a small forest on patients that it did not see.
5. 20 remain.

A table goes in, names with reasons come out. The result depends on the given rows only: whoever holds patients back
does not pass them (`repeats_within` cuts the repeats to the same rows), and a repeat of a lesion that is not among the
rows is refused. The Nogueira index says how stable the selection itself is (Nogueira, Sechidis & Brown 2018).
"""

from workbench.stages.selection.choice import RANDOM, STEPS, STRATEGIES, SYSTEMATIC, UNPERTURBED, Selection, select
from workbench.stages.selection.relevance import mutual_information, quantile_codes, rank_forest, rank_l1, rank_mutual
from workbench.stages.selection.settings import SelectionSettings
from workbench.stages.selection.stability import Stability, icc, icc_table, nogueira, repeats_within, resamples

__all__ = [
    "RANDOM",
    "STEPS",
    "STRATEGIES",
    "SYSTEMATIC",
    "UNPERTURBED",
    "Selection",
    "SelectionSettings",
    "Stability",
    "icc",
    "icc_table",
    "mutual_information",
    "nogueira",
    "quantile_codes",
    "rank_forest",
    "rank_l1",
    "rank_mutual",
    "repeats_within",
    "resamples",
    "select",
]
