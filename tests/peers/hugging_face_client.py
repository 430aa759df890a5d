"""What Hugging Face's client makes of an image and labels, as JSON.

`hugging_face_client.py URL KEY IMAGE`
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from huggingface_hub import InferenceClient


def main(url: str, key: str, image: Path) -> None:
    client = InferenceClient(base_url=f"{url}/zero-shot", api_key=key)
    labels = ["red", "green", "blue"]
    found = [
        client.zero_shot_image_classification(given, labels, hypothesis_template="a photo of something {}")
        for given in (image.read_bytes(), str(image))
    ]
    print(json.dumps([[[one.label, one.score] for one in scored] for scored in found]))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
