"""TorchServe's own image classifier, told what this network's input is, and nothing else."""

# Defines what torchvision lacks beside a CPU build of torch.
import torchvision_cpu  # noqa: F401
from torchvision import transforms
from ts.torch_handler.image_classifier import ImageClassifier


class Cells(ImageClassifier):
    topk = 4
    image_processing = transforms.Compose(
        # By area, as the network was trained.
        [transforms.Resize((60, 80), transforms.InterpolationMode.BOX), transforms.ToTensor()]
    )
