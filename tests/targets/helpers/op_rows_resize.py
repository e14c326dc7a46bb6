"""Rows of the table of operators: Resize."""

from __future__ import annotations

from operators import Case, case


def resize(mode: str, transform: str, rounding: str, size: tuple[int, int], more: str = "") -> Case:
    """6 planes of 5x7 to another size."""
    attributes = (
        f'mode="{mode}", coordinate_transformation_mode="{transform}", nearest_mode="{rounding}"{more}'
    )
    return case(f"y = Resize<{attributes}>(x, , , s)", s=[1, 6, *size])


RESIZES = {
    "nearest_2x": resize("nearest", "asymmetric", "floor", (10, 14)),
    "nearest_2x_3x": resize("nearest", "asymmetric", "floor", (10, 21)),
    "nearest_half_pixel": resize("nearest", "half_pixel", "round_prefer_floor", (15, 14)),
    "nearest_odd": resize("nearest", "asymmetric", "floor", (7, 9)),
    "nearest_ceil": resize("nearest", "asymmetric", "ceil", (8, 9)),
    "nearest_corners": resize("nearest", "align_corners", "round_prefer_ceil", (8, 9)),
    "nearest_exact": resize("nearest", "half_pixel", "round_prefer_ceil", (7, 9)),  # torch's nearest-exact
    "nearest_ties": case(  # which pixel is in the middle hangs on the last bit of the scale
        'y = Resize<nearest_mode="round_prefer_ceil">(x, , , s)', (1, 2, 30, 30), s=[1, 2, 13, 17]
    ),
    "nearest_down": resize("nearest", "asymmetric", "floor", (3, 4)),
    "nearest_symmetric": resize("nearest", "half_pixel_symmetric", "round_prefer_floor", (9, 13)),
    "nearest_scales": case(
        'y = Resize<coordinate_transformation_mode="asymmetric", nearest_mode="floor">(x, , s)',
        s=[1.0, 1.0, 2.0, 2.0],
    ),
    "bilinear_half": resize("linear", "half_pixel", "floor", (10, 14)),
    "bilinear_torch_down": resize("linear", "pytorch_half_pixel", "floor", (3, 4)),
    "bilinear_torch_up": resize("linear", "pytorch_half_pixel", "floor", (9, 13)),
    "bilinear_corners": resize("linear", "align_corners", "floor", (11, 9)),
    "bilinear_corners_3x": resize("linear", "align_corners", "floor", (15, 21)),
    "bilinear_corners_down": resize("linear", "align_corners", "floor", (4, 5)),
    "bilinear_corners_mixed": resize("linear", "align_corners", "floor", (13, 5)),
    "bilinear_asymmetric": resize("linear", "asymmetric", "floor", (10, 21)),
    "bilinear_asymmetric_odd": resize("linear", "asymmetric", "floor", (7, 9)),
    "bilinear_torch_one": resize("linear", "pytorch_half_pixel", "floor", (1, 9)),
    "bilinear_symmetric": resize("linear", "half_pixel_symmetric", "floor", (8, 9)),
    "bilinear_antialiased": resize("linear", "half_pixel", "floor", (3, 4), ", antialias=1"),
    "bilinear_antialiased_inside": resize(
        "linear", "half_pixel", "floor", (2, 9), ", antialias=1, exclude_outside=1"
    ),
    "bilinear_odd_scales": case('y = Resize<mode="linear">(x, , s)', s=[1.0, 1.0, 1.3, 1.9]),
    "bicubic": resize("cubic", "half_pixel", "floor", (10, 14)),
    "bicubic_odd": resize("cubic", "half_pixel", "floor", (8, 9)),
    "bicubic_down": resize("cubic", "half_pixel", "floor", (3, 4)),
    "bicubic_corners": resize("cubic", "align_corners", "floor", (9, 13)),
    "bicubic_asymmetric": resize("cubic", "asymmetric", "floor", (10, 9)),
    "bicubic_rows": resize("cubic", "half_pixel", "floor", (10, 7)),
    "bicubic_sharper": resize("cubic", "half_pixel", "floor", (8, 9), ", cubic_coeff_a=-0.5"),
    "bicubic_inside": resize("cubic", "half_pixel", "floor", (8, 9), ", exclude_outside=1"),
    "bicubic_antialiased": resize(
        "cubic", "half_pixel", "floor", (3, 4), ", antialias=1, cubic_coeff_a=-0.5"
    ),
    "bilinear_scales": case('y = Resize<mode="linear">(x, , s)', s=[1.0, 1.0, 2.0, 2.0]),
    "bilinear_axes": case('y = Resize<mode="linear", axes=[2,3]>(x, , , s)', (1, 4, 7, 9), s=[10, 13]),
}
