"""Train Mask2Former on DINOv3: python THIS_FILE [--key value ...], or accelerate launch THIS_FILE for several GPUs."""

import sys
from pathlib import Path

CONFIG = "mask2former-dinov3_large_1024_train_args.json"

if __name__ == "__main__":
    try:
        from mask2former_dinov3.cli import main
    except ModuleNotFoundError as error:
        sys.exit(f"error: {error}; run: pip install -c constraints.txt -e .")
    sys.exit(main(["train", "--config", str(Path(__file__).with_name(CONFIG)), *sys.argv[1:]]))
