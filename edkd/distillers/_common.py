"""Helpers that methods in mdistiller's style import: shapes of features, and a connector."""

from typing import Any

from torch import Tensor, nn

from edkd.distillers._features import feature_shapes
from edkd.errors import UserError

Shape = tuple[int, ...]


def get_feat_shapes(
    student: nn.Module, teacher: nn.Module, input_size: tuple[int, int]
) -> tuple[list[Shape], list[Shape]]:
    """The shapes of `feats` for one image; neither network runs or changes.

    Args:
        student: under the contract of a model.
        teacher: the same.
        input_size: (height, width) of an image.

    Returns:
        Shapes (1,D,H,W) of the student's feature maps, and of the teacher's.
    """
    image_shape = (3, *input_size)
    shapes_student = feature_shapes(student, image_shape).feats
    shapes_teacher = feature_shapes(teacher, image_shape).feats
    return shapes_student, shapes_teacher


class ConvReg(nn.Module):
    """Maps a student's feature map to the shape of a teacher's: convolution, batch norm, ReLU.

    A. Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, section 2.3. The kernel
    follows from the two heights: stride 2 to halve, a transposed convolution to double, otherwise a
    kernel without padding that leaves the teacher's height.

    Args:
        s_shape: (N,D,H,W) of the student's feature map; N does not matter.
        t_shape: of the teacher's.
        use_relu: whether a ReLU ends it.

    Raises:
        UserError: the teacher's map is larger than the student's, but not twice as large.
    """

    def __init__(self, s_shape: Shape, t_shape: Shape, use_relu: bool = True) -> None:
        super().__init__()
        self.use_relu = use_relu
        self.conv = _to_height(s_shape, t_shape)
        self.bn = nn.BatchNorm2d(t_shape[1])
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N,D,H,W) of the student -> (N,D,H,W) of the teacher."""
        x = self.bn(self.conv(x))
        return self.relu(x) if self.use_relu else x


def _to_height(shape_student: Shape, shape_teacher: Shape) -> Any:
    channels = (shape_student[1], shape_teacher[1])
    height_student = shape_student[2]
    height_teacher = shape_teacher[2]

    if height_student == 2 * height_teacher:
        return nn.Conv2d(*channels, kernel_size=3, stride=2, padding=1)
    if 2 * height_student == height_teacher:
        return nn.ConvTranspose2d(*channels, kernel_size=4, stride=2, padding=1)
    if height_student >= height_teacher:
        return nn.Conv2d(*channels, kernel_size=1 + height_student - height_teacher)
    raise UserError(
        f"ConvReg: a feature map of {tuple(shape_student)} cannot become one of "
        f"{tuple(shape_teacher)}; choose layers whose heights are equal, half or double"
    )
