# The gateway alone: PostgreSQL and S3 are elsewhere (see docker-compose.yml).
#
#   docker build -t headrace-gateway .
#   docker run -e HEADRACE_GATEWAY_DSN=postgresql://… -e HEADRACE_GATEWAY_AUTH=true \
#       -p 7420:7420 headrace-gateway

FROM python:3.12-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/headrace
WORKDIR /src
# What changes seldom comes first, so that a change of code rebuilds little.
COPY clients/python clients/python
RUN /opt/headrace/bin/pip install ./clients/python
COPY pyproject.toml README.md LICENSE ./
COPY gateway gateway
RUN /opt/headrace/bin/pip install .

FROM python:3.12-slim
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin headrace
COPY --from=build /opt/headrace /opt/headrace
ENV PATH=/opt/headrace/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HEADRACE_GATEWAY_LISTEN=0.0.0.0:7420 \
    HEADRACE_GATEWAY_METRICS_LISTEN=0.0.0.0:7421 \
    HEADRACE_GATEWAY_LOG_FORMAT=json
USER 10001
WORKDIR /tmp
EXPOSE 7420 7421
# The gateway drains on SIGTERM for at most drain_deadline_s (30 s): give it longer,
# `docker stop --timeout 40` or terminationGracePeriodSeconds.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:7421/metrics', timeout=4)"]
ENTRYPOINT ["headrace-gateway"]
CMD ["serve"]
