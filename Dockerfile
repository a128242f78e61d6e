# One kvnode node. Everything is built in the first image, which has pip; the second has neither pip nor sources.
FROM python:3.14-slim AS build
WORKDIR /src
RUN python -m venv --without-pip /opt/kvnode
# The dependencies have a layer of their own: a change of code does not fetch them again.
# Exactly what is locked, compared by hash; `make lock` renews the file.
COPY requirements.lock ./
RUN python -m pip --python /opt/kvnode/bin/python install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY kvnode kvnode
RUN python -m pip --python /opt/kvnode/bin/python install --no-cache-dir --disable-pip-version-check --no-deps .

FROM python:3.14-slim
# A fixed number, so that who owns the data is the same on every host and in every orchestrator; no name, so no login.
ARG UID=10001
COPY --from=build /opt/kvnode /opt/kvnode
RUN install -d -o ${UID} -g ${UID} -m 0700 /data
ENV PATH=/opt/kvnode/bin:$PATH PYTHONUNBUFFERED=1 KVNODE_DATA_DIR=/data
USER ${UID}:${UID}
WORKDIR /data
VOLUME /data
EXPOSE 7001 8001
# Liveness alone: a node that waits for its peers is healthy, and restarting it would not bring them.
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=3 CMD ["python", "-c", "from http.client import HTTPConnection as C; c = C('127.0.0.1', 8001, timeout=2); c.request('GET', '/livez'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["kvnode"]
CMD ["serve"]
