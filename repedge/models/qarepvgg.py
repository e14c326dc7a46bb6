"""QARepVGG (Chu et al., AAAI 2024, arXiv:2212.01593): RepVGG whose merged weights quantize well.

State-dict keys are those of the authors' release (``QARepVGGBlockV2`` of cxxgtxy/QARepVGG, which is
also YOLOv6's ``QARepVGGBlock``). The deploy form is RepVGG's own, key for key.
"""

from __future__ import annotations

import torch
from torch import nn

from repedge.models.repvgg import RepVGG, RepVGGBlock


class QARepVGGBlock(RepVGGBlock):
    """``BN(BN(3x3 x) + 1x1 x + x)``; one 3x3 conv in deploy form.

    RepVGG's identity branch is a BN whose scale is large where a channel hardly varies, which is where
    the outliers of its merged weights come from. Here identity and 1x1 come as they are, and one BN
    after the sum keeps the variance of the output in hand.
    """

    def __init__(
        self, inp: int, out: int, stride: int, *, groups: int = 1, se: int = 0, deploy: bool = False
    ) -> None:
        if se:
            # The authors' D2se puts its gate between the sum and the BN, where nothing fuses: their
            # training and deploy form are different functions.
            raise ValueError("QARepVGG has no form with squeeze-excite that fuses")
        super().__init__(inp, out, stride, groups=groups, deploy=deploy)
        if not deploy:
            self.rbr_1x1 = nn.Conv2d(inp, out, 1, stride, groups=groups, bias=False)
            self.rbr_identity = nn.Identity() if inp == out and stride == 1 else None
            self.bn = nn.BatchNorm2d(out)

    def linear_part(self, x: torch.Tensor) -> torch.Tensor:
        """The part of the block that fuses to one convolution."""
        y = super().linear_part(x)
        return y if self.deploy else self.bn(y)


class QARepVGG(RepVGG):
    """A RepVGG of QARepVGG blocks; its arguments without ``se``."""

    block = QARepVGGBlock
