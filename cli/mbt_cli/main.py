"""The app: commands are found through the plugin registry and imported only when called."""

from __future__ import annotations

import atexit
import gc
import os
import sys
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command_from_info, get_group
from typer.models import CommandInfo

from mbt_cli.output import fail
from mbt_cli.threads import settle_waiting
from mbt_core.errors import MBTError, nearest
from mbt_core.plugins import load_object, registry
from mbt_core.plugins.hookspecs import CommandSpec
from mbt_core.version import __version__


class LazyGroup(TyperGroup):
    """Lists commands from their light specs; loads a command's module when it is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(registry().commands)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        provided = registry().commands.get(cmd_name)
        if provided is None:
            return None
        return _real(provided.spec) if ctx.resilient_parsing else _stub(provided.spec)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0] if args else ""
        provided = registry().commands.get(name)
        if provided is None:
            hint = nearest(name, registry().commands)
            fail(f"no command {name!r}.{hint} See: mbt --help", 2)
        return name, _real(provided.spec), args[1:]

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MBTError as error:
            if ctx.params.get("debug"):
                raise
            fail(str(error), error.exit_code)
        except KeyboardInterrupt:
            fail("interrupted", 130)
        except BrokenPipeError:
            # whoever read our output has gone (`mbt ... | head`): nothing to say, and nobody to say it to
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except OSError as error:
            if ctx.params.get("debug"):
                raise
            fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), 1)
        except Exception as error:
            # what has an exit code of its own is wrong usage, which is told further up
            if ctx.params.get("debug") or hasattr(error, "exit_code") or isinstance(error, typer.Abort):
                raise
            what = f"{type(error).__name__}: {error}"
            fail(f"this should not have happened: {what}\nmbt --debug {ctx.invoked_subcommand} ... shows where", 1)


def _stub(spec: CommandSpec) -> Any:
    def callback() -> None: ...

    info = CommandInfo(name=spec.name, callback=callback, help=spec.help, rich_help_panel=spec.panel)
    return get_command_from_info(info, pretty_exceptions_short=True, rich_markup_mode=None)


def _real(spec: CommandSpec) -> Any:
    target = load_object(spec.target)
    if isinstance(target, typer.Typer):
        command = get_group(target)
        command.name = spec.name
        return command
    info = CommandInfo(name=spec.name, callback=target, no_args_is_help=False)
    return get_command_from_info(info, pretty_exceptions_short=True, rich_markup_mode=None)


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Multimodal transformers with attention bottlenecks: train, evaluate, explain.",
)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"mbt-fusion {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    warnings.showwarning = _show_warning


def _show_warning(message: Any, category: Any, *_: Any, **__: Any) -> None:
    """Our own warnings in one line each; others' are for developers."""
    if category.__module__.partition(".")[0] == "mbt_core":
        print(f"Warning: {message}", file=sys.stderr)


def main() -> None:
    """Entry point of the script ``mbt``."""
    atexit.register(gc.freeze)  # or Python looks through a million objects for cycles, only to end
    if sys.argv[1:] and not sys.argv[1].startswith("-"):  # a command
        settle_waiting(os.environ)
    app()
