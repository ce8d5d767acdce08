"""The command line: `python -m serving COMMAND`.

Exit codes: 0 success or in sync, 1 failure or problems found, 2 usage error, 3 the service does not
run, 4 another change is in progress.
"""

from __future__ import annotations

from typing import Any

import click

from serving.cli import edge, reports, service, versions
from serving.cli.console import BUSY, NOT_RUNNING, NOT_RUNNING_MESSAGE, fail
from serving.cli.predict import predict
from serving.client import ServiceError, Unreachable
from serving.deployment import Busy, DeploymentError
from serving.edge.keys import KeyFileError
from serving.rollout.changes import NotRunning, Refused
from serving.settings import Settings, SettingsError
from serving.torchserve import StartError
from serving.torchserve.tokens import TokenError


class Group(click.Group):
    """Commands in the order they are added; an expected error is one line, not a traceback."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except NotRunning as error:
            fail(str(error), NOT_RUNNING)
        except (Unreachable, TokenError):
            fail(NOT_RUNNING_MESSAGE, NOT_RUNNING)
        except Busy as error:
            fail(str(error), BUSY)
        except (
            Refused,
            ServiceError,
            StartError,
            SettingsError,
            DeploymentError,
            KeyFileError,
        ) as error:
            fail(str(error))
        except BrokenPipeError:
            # Click ends quietly, as after `| head`.
            raise
        except OSError as error:
            # A full or read-only disk, for example.
            fail(f"{error.filename}: {error.strerror}." if error.filename else str(error))


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.pass_context
def main(context: click.Context) -> None:
    """Run the white blood cell classifier and manage the versions of its model.

    Environment variables set ports and folders: see docs/configuration.md.
    """
    context.obj = Settings.from_environment()


for command in (
    service.run,
    service.stop,
    edge.edge,
    edge.edge_key,
    reports.status,
    versions.deploy,
    versions.promote,
    versions.canary,
    versions.rollback,
    versions.scale,
    versions.retire,
    versions.apply,
    predict,
    reports.history,
    reports.doctor,
    service.renew_tokens,
):
    main.add_command(command)
