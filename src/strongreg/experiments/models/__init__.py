"""The networks of the experiments, built for an image shape and a number of classes.

==================================  ===========================================================  ============
name                                form                                                         options
==================================  ===========================================================  ============
plain_cnn                           eight 3x3 convolutions, three linear layers
lenet300, lenet5                    LeNet-300-100 and the LeNet-5 of Caffe
alexnet                             five convolutions, one linear layer
vgg11, vgg13, vgg16, vgg19          the CIFAR form: classifier of 512, 512                       norm, dropout
vgg_narrow                          nine 3x3 convolutions, three linear layers: for a CPU        dropout
resnet18                            the ImageNet network with a CIFAR stem
resnet20, resnet32, resnet56        the CIFAR networks of He et al., shortcuts without weights
wrn28_2                             wide residual network, pre-activation
vit_tiny                            vision transformer, patches of 4x4
==================================  ===========================================================  ============

Anything else is a network of the user's own, named ``package.module:factory``.
"""

from strongreg.experiments.models.build import MODELS as MODELS
from strongreg.experiments.models.build import build_model as build_model
from strongreg.experiments.models.inputs import ImageShape as ImageShape

__all__ = ["MODELS", "ImageShape", "build_model"]
