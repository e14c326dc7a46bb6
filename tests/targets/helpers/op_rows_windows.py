"""Rows of the table of operators: convolutions and pools."""

from __future__ import annotations

from operators import case

WINDOWS = {
    "conv_same": case("y = Conv<pads=[1,1,1,1]>(x, w, b)", (1, 6, 9, 9), w=(12, 6, 3, 3), b=(12,)),
    "conv_no_bias": case("y = Conv<pads=[1,1,1,1]>(x, w)", (1, 6, 9, 9), w=(12, 6, 3, 3)),
    "conv_1x1": case("y = Conv(x, w)", (1, 4, 6, 8), w=(5, 4, 1, 1)),
    "conv_stride2_even": case(
        "y = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w, b)", (1, 6, 8, 10), w=(12, 6, 3, 3), b=(12,)
    ),
    "conv_stride2_odd": case(
        "y = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w, b)", (1, 6, 9, 11), w=(12, 6, 3, 3), b=(12,)
    ),
    "conv_stride2_1x1": case("y = Conv<strides=[2,2]>(x, w)", (1, 6, 8, 8), w=(4, 6, 1, 1)),
    "conv_asymmetric": case("y = Conv<pads=[0,2,1,0]>(x, w, b)", (1, 6, 9, 9), w=(12, 6, 3, 3), b=(12,)),
    "conv_asymmetric_stride2": case(
        "y = Conv<strides=[2,2], pads=[0,1,2,0]>(x, w, b)", (1, 4, 7, 9), w=(6, 4, 3, 3), b=(6,)
    ),
    "conv_all_different": case(
        "y = Conv<pads=[0,1,2,3], strides=[2,1], dilations=[1,2]>(x, w, b)",
        (1, 4, 6, 8),
        w=(4, 4, 3, 3),
        b=(4,),
    ),
    "conv_same_upper": case(
        'y = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, w, b)', (1, 6, 8, 8), w=(12, 6, 3, 3), b=(12,)
    ),
    "conv_dilated": case(
        "y = Conv<pads=[2,2,2,2], dilations=[2,2]>(x, w, b)", (1, 6, 9, 9), w=(12, 6, 3, 3), b=(12,)
    ),
    "conv_dilated_stride2": case(
        "y = Conv<pads=[2,2,2,2], dilations=[2,2], strides=[2,2]>(x, w)", (1, 6, 10, 10), w=(12, 6, 3, 3)
    ),
    "conv_dilated_rows": case(
        "y = Conv<strides=[2,2], dilations=[2,1], pads=[2,1,2,1]>(x, w)", (1, 4, 7, 9), w=(6, 4, 3, 3)
    ),
    "conv_1x5": case("y = Conv<pads=[0,2,0,2]>(x, w)", (1, 6, 9, 9), w=(4, 6, 1, 5)),
    "conv_grouped": case(
        "y = Conv<pads=[1,1,1,1], group=3>(x, w, b)", (1, 6, 9, 9), w=(12, 2, 3, 3), b=(12,)
    ),
    "conv_depthwise": case(
        "y = Conv<pads=[1,1,1,1], group=6, strides=[2,2]>(x, w)", (1, 6, 8, 8), w=(6, 1, 3, 3)
    ),
    "conv_depthwise_bias": case(
        "y = Conv<group=4, pads=[1,1,1,1]>(x, w, b)", (1, 4, 7, 9), w=(4, 1, 3, 3), b=(4,)
    ),
    "conv_depthwise_5x5": case("y = Conv<group=4, pads=[2,2,2,2]>(x, w)", (1, 4, 6, 8), w=(4, 1, 5, 5)),
    "conv_depthwise_multiplier": case(
        "y = Conv<pads=[2,2,2,2], group=6, dilations=[2,2]>(x, w, b)", (1, 6, 9, 9), w=(12, 1, 3, 3), b=(12,)
    ),
    "conv_gray": case("y = Conv<pads=[1,1,1,1]>(x, w)", (1, 1, 9, 9), w=(4, 1, 3, 3)),
    "deconv_2x2": case("y = ConvTranspose<strides=[2,2]>(x, w, b)", (1, 6, 5, 4), w=(6, 3, 2, 2), b=(3,)),
    "deconv_4x4_pad1": case(
        "y = ConvTranspose<strides=[2,2], pads=[1,1,1,1]>(x, w)", (1, 6, 5, 4), w=(6, 3, 4, 4)
    ),
    "deconv_output_padding": case(
        "y = ConvTranspose<strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]>(x, w)",
        (1, 6, 5, 4),
        w=(6, 3, 3, 3),
    ),
    "deconv_output_padding_bias": case(
        "y = ConvTranspose<strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]>(x, w, b)",
        (1, 4, 7, 9),
        w=(4, 6, 3, 3),
        b=(6,),
    ),
    "deconv_output_padding_grouped": case(
        "y = ConvTranspose<strides=[2,2], pads=[1,1,1,1], output_padding=[1,1], group=2>(x, w)",
        (1, 4, 6, 8),
        w=(4, 3, 3, 3),
    ),
    "deconv_beyond": case(
        "y = ConvTranspose<strides=[3,2], output_padding=[2,1]>(x, w, b)",
        (1, 4, 6, 5),
        w=(4, 6, 2, 3),
        b=(6,),
    ),
    "deconv_beyond_pads": case(
        "y = ConvTranspose<strides=[4,4], pads=[1,0,1,1], output_padding=[3,2]>(x, w)",
        (1, 4, 6, 5),
        w=(4, 2, 3, 3),
    ),
    "deconv_beyond_grouped": case(
        "y = ConvTranspose<strides=[2,3], output_padding=[1,2], group=2, dilations=[2,1]>(x, w, b)",
        (1, 4, 6, 5),
        w=(4, 3, 3, 2),
        b=(6,),
    ),
    "deconv_gaps": case("y = ConvTranspose<strides=[4,3]>(x, w, b)", (1, 4, 6, 5), w=(4, 6, 2, 2), b=(6,)),
    "deconv_odd_strides": case(
        "y = ConvTranspose<strides=[3,5], pads=[1,2,0,1]>(x, w)", (1, 4, 6, 5), w=(4, 3, 4, 7)
    ),
    "deconv_grouped": case("y = ConvTranspose<group=2, strides=[2,2]>(x, w)", (1, 4, 7, 9), w=(4, 3, 2, 2)),
    "deconv_grouped_dilated": case(
        "y = ConvTranspose<group=2, dilations=[2,2], pads=[1,1,1,1]>(x, w)", (1, 6, 5, 5), w=(6, 2, 3, 3)
    ),
    "maxpool": case("y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)", (1, 6, 8, 8)),
    "maxpool_same": case("y = MaxPool<kernel_shape=[5,5], pads=[2,2,2,2]>(x)", (1, 6, 9, 9)),
    "maxpool_padded": case("y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)", (1, 6, 8, 8)),
    "maxpool_ceil": case("y = MaxPool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(x)", (1, 6, 8, 8)),
    "maxpool_ceil_2x2": case("y = MaxPool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>(x)", (1, 4, 7, 9)),
    "maxpool_ceil_padded": case(
        "y = MaxPool<kernel_shape=[2,3], strides=[2,2], pads=[0,1,1,0], ceil_mode=1>(x)", (1, 4, 7, 8)
    ),
    "maxpool_after_relu": case(
        "r = Relu(x) y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(r)", (1, 6, 8, 8)
    ),
    "avgpool_excluding": case("y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(x)", (1, 6, 9, 9)),
    "avgpool_asymmetric": case("y = AveragePool<kernel_shape=[3,3], pads=[1,0,1,2]>(x)", (1, 4, 6, 8)),
    "avgpool_including": case(
        "y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(x)", (1, 6, 9, 9)
    ),
    "avgpool_stride2": case(
        "y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]>(x)", (1, 6, 8, 8)
    ),
    "avgpool_ceil": case("y = AveragePool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>(x)", (1, 6, 7, 7)),
    "avgpool_ceil_3x3": case(
        "y = AveragePool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(x)", (1, 4, 6, 8)
    ),
    "global_average": case("y = GlobalAveragePool(x)"),
    "global_max": case("y = GlobalMaxPool(x)"),
}
