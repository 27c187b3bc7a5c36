"""What is known of autograd's operations, by the names of their nodes.

The lists are not complete and need not be: what is not on them counts as not proven, and the
measure then takes the way that needs no such property.
"""

from __future__ import annotations


def _named(names: str) -> frozenset[str]:
    return frozenset(names.split())


# Entry by entry, of one tensor; linear almost everywhere. Where there are two derivatives of one
# operation, the second is that of its variant in place.
KINKED = _named("""
    AbsBackward0 AliasBackward0 ClampBackward1 ClampMaxBackward0 ClampMinBackward0
    CloneBackward0 HardshrinkBackward0 HardsigmoidBackward0 HardtanhBackward0 LeakyReluBackward0
    LeakyReluBackward1 NegBackward0 ReluBackward0 RsubBackward1 SoftshrinkBackward0
    ThresholdBackward0 ThresholdBackward1 ToCopyBackward0
""")
CURVED = _named("""
    CeluBackward0 CeluBackward1 EluBackward0 EluBackward1 ErfBackward0 ExpBackward0
    GeluBackward0 HardswishBackward0 LogSigmoidBackward0 MishBackward0 PowBackward0
    SigmoidBackward0 SiluBackward0 SoftplusBackward0 TanhBackward0
""")
# Their derivative cannot be differentiated again, so second derivatives in front are out of reach.
ONCE = frozenset({"HardsigmoidBackward0"})
# Entry by entry, of several tensors, with broadcasting.
SUMS = _named("""
    AddBackward0 ClampBackward0 MaximumBackward0 MinimumBackward0 SubBackward0 WhereBackward0
""")
ENTRYWISE_PRODUCTS = frozenset({"DivBackward0", "MulBackward0"})
BROADCASTING = SUMS | ENTRYWISE_PRODUCTS
# Bilinear: which of their operands (edges) are multiplied with each other.
PRODUCTS = {
    "AddmmBackward0": (1, 2),
    "BmmBackward0": (0, 1),
    "ConvolutionBackward0": (0, 1),
    "DivBackward0": (0, 1),
    "MmBackward0": (0, 1),
    "MulBackward0": (0, 1),
    "PreluKernelBackward0": (0, 1),
}
# Within the channels of one sample, on 4d tensors.
POOLING = _named("""
    AdaptiveAvgPool2DBackward0 AdaptiveMaxPool2DBackward0 AvgPool2DBackward0
    MaxPool2DWithIndicesBackward0 MkldnnAdaptiveAvgPool2DBackward0 ReflectionPad2DBackward0
    ReplicationPad2DBackward0 UpsampleBilinear2DBackward0 UpsampleNearest2DBackward0
""")
BATCH_NORM = frozenset({"CudnnBatchNormBackward0", "NativeBatchNormBackward0"})
REDUCING = _named("""
    AmaxBackward0 AminBackward0 MaxBackward0 MeanBackward1 MinBackward0 SelectBackward0
    SumBackward1
""")
RESHAPING = _named("""
    ReshapeAliasBackward0 SliceBackward0 SqueezeBackward0 SqueezeBackward1 SqueezeBackward2
    UnsafeViewBackward0 UnsqueezeBackward0 ViewBackward0
""")
# They hand on what they are given, in another shape.
PASSIVE = _named("""
    AliasBackward0 CloneBackward0 ReshapeAliasBackward0 UnsafeViewBackward0 ViewBackward0
""")
JOINING = frozenset({"CatBackward0", "StackBackward0"})
SPLITTING = frozenset({"SplitBackward0", "SplitWithSizesBackward0", "UnbindBackward0"})
NORMALISING = frozenset({"NativeGroupNormBackward0", "NativeLayerNormBackward0"})
# Linear, and nothing more is asked of them.
MOVING = _named("""
    ChannelShuffleBackward0 ConstantPadNdBackward0 ExpandBackward0 FlipBackward0 IndexBackward0
    IndexSelectBackward0 MeanBackward0 PermuteBackward0 PixelShuffleBackward0
    PixelUnshuffleBackward0 RepeatBackward0 RollBackward0 SumBackward0 TBackward0
    TransposeBackward0
""")
LINEAR = KINKED | SUMS | POOLING | REDUCING | RESHAPING | JOINING | SPLITTING | MOVING
POINTWISE = KINKED | CURVED | BROADCASTING | BATCH_NORM | {"PreluKernelBackward0"}
CHANNELWISE = KINKED | CURVED | RESHAPING
