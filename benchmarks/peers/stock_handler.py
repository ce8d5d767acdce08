"""TorchServe's own image classifier, with the input of this network."""

# Defines what torchvision lacks with a CPU build of torch.
import torchvision_cpu  # noqa: F401
from torchvision import transforms
from ts.torch_handler.image_classifier import ImageClassifier


class Cells(ImageClassifier):
    topk = 4
    image_processing = transforms.Compose(
        # By area, as in training.
        [transforms.Resize((60, 80), transforms.InterpolationMode.BOX), transforms.ToTensor()]
    )
