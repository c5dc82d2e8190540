# One image for every service of docker-compose.yml: datalocal in a virtual environment, and Hadoop's jars by the pinned pom.
# Any Debian-like image with python3 (3.11 or newer) and its venv module will do as BASE_IMAGE.
ARG BASE_IMAGE=python:3.12-slim-bookworm

FROM ${BASE_IMAGE} AS jars
RUN apt-get update && apt-get install -y --no-install-recommends maven && rm -rf /var/lib/apt/lists/*
COPY datalocal/launch/hadoop/pom.xml /tmp/pom.xml
# Where datalocal looks for them: a folder named after the pom's content.
RUN mvn -q -B -f /tmp/pom.xml dependency:copy-dependencies \
      -DoutputDirectory="/cache/datalocal/hadoop-$(sha256sum /tmp/pom.xml | cut -c1-12)"

FROM ${BASE_IMAGE}
RUN apt-get update && apt-get install -y --no-install-recommends default-jre-headless iproute2 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 1000 --create-home --home-dir /var/lib/datalocal datalocal \
 && mkdir /data && chown datalocal /data
RUN python3 -m venv /opt/datalocal
ENV PATH=/opt/datalocal/bin:$PATH
WORKDIR /srv/datalocal
# The dependencies first: they are large, and change less often than the code.
COPY pyproject.toml README.md LICENSE ./
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; print('\n'.join(p['dependencies'] + p['optional-dependencies']['demo']))" > /tmp/requirements.txt \
 && pip install --no-cache-dir -r /tmp/requirements.txt
COPY --from=jars /cache /cache
COPY jobs jobs
COPY cluster-configs cluster-configs
COPY datalocal datalocal
RUN pip install --no-cache-dir --no-deps . && rm -rf datalocal
ENV XDG_CACHE_HOME=/cache \
    DATALOCAL_HOME=/var/lib/datalocal/runs \
    DATALOCAL_CLUSTER=/srv/datalocal/cluster-configs/compose.yaml
USER datalocal
CMD ["datalocal", "--help"]
