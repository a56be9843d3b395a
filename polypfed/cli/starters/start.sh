#!/bin/sh
# A board: detect, keep hard frames encrypted, take over new global models. Runs in the foreground; SIGTERM ends it.
#
# Before: polypfed export yolov5n --image-size 320 --install-converter    on a workstation, makes the template
#         polypfed doctor device                                          here
#         polypfed doctor device --delegate /usr/lib/libvx_delegate.so    with an accelerator
set -eu
cd "$(dirname "$0")"

SOURCE=0                 # a camera (0, /dev/video0), a video, a folder or rtsp://...
TEMPLATE=template.zip    # of the models to come
MODELS=models            # new global models arrive here as .safetensors, each written whole: mv, not cp
STORE=samples            # hard frames, encrypted
KEY=samples.key          # made if it is missing; best on another medium than the store
mkdir -p "$MODELS"

exec polypfed device "$SOURCE" --template "$TEMPLATE" --models "$MODELS" --store "$STORE" --key "$KEY" \
    --store-gb 4 --threshold 0.7 --every 10
# Further: --delegate LIB,key:value   --threads N   --conf 0.25   --live --port 8501
