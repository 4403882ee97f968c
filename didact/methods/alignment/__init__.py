"""Make the model do what people prefer."""

from didact.methods.alignment.d2o import d2o
from didact.methods.alignment.genarm import genarm
from didact.methods.alignment.infalign import infalign
from didact.methods.alignment.spin import spin

__all__ = ["d2o", "genarm", "infalign", "spin"]
