# docker build -t servd . && docker run --rm -p 8000:8000 -v servd-state:/var/lib/servd servd
FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE servd_entry.py ./
COPY servd servd
RUN python -m venv /opt/servd && /opt/servd/bin/pip install --no-cache-dir --disable-pip-version-check '.[grpc,otel]'

FROM python:3.13-slim
RUN useradd --uid 999 --create-home servd && install -d -m 0700 -o servd -g servd /var/lib/servd
COPY --from=build /opt/servd /opt/servd
ENV PATH=/opt/servd/bin:$PATH SERVD_STATE_DIR=/var/lib/servd
USER servd
WORKDIR /home/servd
VOLUME /var/lib/servd
EXPOSE 8000
HEALTHCHECK --start-period=60s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/-/healthz', timeout=2)"]
# the admin port stays on loopback: `docker exec CONTAINER servd deploy ...`
CMD ["servd", "start", "--http-host", "0.0.0.0", "--log-to-stderr"]
