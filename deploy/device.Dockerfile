# A board: detection as a service, signed updates. The folder to build in is a wheelhouse for the board:
#
#     polypfed bundle board --extra edge --extra release --platform aarch64
#     polypfed init device box
#     docker build -f deploy/device.Dockerfile --platform linux/arm64 -t polypfed-device board
#     docker run --init --read-only --tmpfs /tmp --device /dev/video0 --group-add video \
#         --user "$(id -u):$(id -g)" -v "$PWD/box:/device" polypfed-device
#
# Model, samples and their key are in the mounted folder, never in the image.
ARG PYTHON=3.11-slim-bookworm

FROM python:${PYTHON} AS build
COPY . /bundle
RUN /bundle/install.sh /opt/polypfed/.venv

FROM python:${PYTHON} AS device
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin polypfed
COPY --from=build /opt/polypfed/.venv /opt/polypfed/.venv
ENV PATH=/opt/polypfed/.venv/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1
USER 10001
WORKDIR /device
CMD ["./start.sh"]
