"""Boundary relabelling: a compact 3D patch net decides each voxel of a narrow band around every lesion's surface.

States (the paper): a compact 3D patch-based CNN derived from AlexNet, in a narrow band around the tumor boundary,
relabels voxels and smooths the contour.
Chooses: everything below.

Band: voxels whose centre lies within `band_mm` of the mask's surface, which is made of voxel faces. The distance is
Euclidean, anisotropic and exact: the nearest point of the nearest voxel on the other side, not that voxel's centre.

Net: one logit, tumor or not, for the centre voxel of a patch on a fixed grid in mm. Against AlexNet (Krizhevsky 2012):

| AlexNet                | here (demo / paper, z y x)                    | why                                         |
|------------------------|-----------------------------------------------|---------------------------------------------|
| input 3x224x224        | 4x9x21x21 / 4x13x29x29: CT, tumor probability,| what the cascade saw and where it drew; the |
|                        | signed distance to the mask, contrast relative| patch is 36x53x53 / 20x23x23 mm             |
|                        | to the lesion's own                           |                                             |
| conv1 11x11, stride 4  | conv1 3x5x5, stride 1                         | an edge must be placed to the voxel         |
| response normalisation | batch norm after conv1 to fc7                 | fixed at inference, so dense == patch; fc   |
|                        |                                               | layers without it died with some seeds      |
| pool1 3x3, stride 2    | pool1 1x3x3, stride 2 in the plane            | kept, overlapping; slices are thick enough  |
| conv2 5x5              | conv2 3x3x3                                   | smaller patch                               |
| pool2 3x3, stride 2    | pool2 1x2x2, stride 1 / 2 in the plane        | the stride that the patch affords           |
| conv3, 4, 5 3x3        | 3x3x3, 1x3x3 / 3x3x3, 1x1x1 / 3x1x1           | kept: three in a row without a pool         |
| pool5 3x3, stride 2    | none                                          | one place is left in the plane              |
| padding                | none                                          | it would mark a patch's edge: dense != patch|
| fc6, fc7 4096, dropout | fc6 over all that is left, fc7, dropout       | kept, as convolutions, smaller              |
|                        | fc7 also reads 3x3x3 around the middle        | pools forget to the voxel where an edge is  |
| fc8 1000, softmax      | fc8 1 added to the cascade's log odds, sigmoid| two classes; it starts from what is known   |
| ReLU                   | ReLU                                          | kept                                        |

Dense evaluation: a layer of stride s means that the layers after it see every s-th place. Evaluated at every voxel, the
pools run at stride 1 and every later kernel is dilated by the strides before it (a trous; Giusti 2013, Sermanet 2013).
Each voxel then gets exactly the sums that its own patch would give, once instead of once a patch. Beyond the
volume's border a patch sees the border's voxels repeated; dense tiles read the same ones. Tiles of bounded size cover
the bands of the lesions only, each with the margin its patches need.

Back on the scan's grid: what the net adds to the cascade's log odds is carried there, and added to those that the cascade has there. So
a grid coarser than the cascade's loses nothing of them, as far as the net trusts them (decision 0015).

Training: on tiles of the same dense net with the loss masked to the band, which is training on patches, cheaper.
Tiles are centred on band voxels; every lesion is as likely as another and every tile weighs the same, so a large one
does not drown the small ones. Only candidates that overlap the reference are learnt from: bands of false ones taught the
net to shrink everything (docs/log.md, 2026-11-25). The target is the share of tumor in the grid voxel.

After the net: p in the band (blended with the cascade's probability if `blend` > 0), the mask itself outside; a
Gaussian of `smooth_mm`; times twice P(lesion) of the piece, which the forest says of what is no larger than all that it learnt from,
where that is below even odds, since the net knows lesions only and would draw a false candidate as large as a lesion; threshold, in the band only. It is half the
Dice that a lesion can have, as Dice asks for (Lipton 2014). Tumor is added only within `liver_margin_mm` of the liver. No
lesion vanishes (one that would is left as it was), none is born (an added piece that hangs on no old voxel is dropped)
and none merge (added voxels that would join two are dropped); what happened to each is a row of `lesions`.
"""

from workbench.stages.boundary.contour import Relabelled, chances, relabel
from workbench.stages.boundary.net import CHANNELS, PatchNet, dense_logits, patch_logits, patches_at
from workbench.stages.boundary.settings import DEMO, PAPER, BoundarySettings, Case
from workbench.stages.boundary.surface import band, relative_contrast, signed_distance
from workbench.stages.boundary.training import BoundaryModel, load, train

__all__ = [
    "BoundaryModel",
    "BoundarySettings",
    "CHANNELS",
    "Case",
    "DEMO",
    "PAPER",
    "PatchNet",
    "Relabelled",
    "band",
    "chances",
    "dense_logits",
    "load",
    "patch_logits",
    "patches_at",
    "relabel",
    "relative_contrast",
    "signed_distance",
    "train",
]
