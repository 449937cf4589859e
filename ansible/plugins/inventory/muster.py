"""Lists the machines of a Muster site as an Ansible inventory.

The plugin runs `muster inventory --list` and hands its answer on; what a machine
is called, where it stands and how it is reached is the plan's business alone.
"""

import json
import os
import subprocess

from ansible.errors import AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin

DOCUMENTATION = """
name: muster
short_description: Machines of a Muster site
description:
  - Asks the C(muster) program for the machines of a site, with their groups and variables.
options:
  plugin:
    description: Must be C(muster).
    required: true
    choices: [muster, muster.rack.muster]
  binary:
    description: The C(muster) program.
    type: str
    default: muster
    env:
      - name: MUSTER_BINARY
  rack_file:
    description:
      - The site's C(rack.yaml), relative to the inventory file.
      - Without it, C(muster) is asked for the site that is up.
    type: path
"""

SUFFIXES = (".muster.yml", ".muster.yaml")


class InventoryModule(BaseInventoryPlugin):
    """Turns the answer of `muster inventory --list` into hosts and groups."""

    NAME = "muster"

    def verify_file(self, path):
        """Accepts files whose name ends in .muster.yml or .muster.yaml."""
        return super().verify_file(path) and path.endswith(SUFFIXES)

    def parse(self, inventory, loader, path, cache=True):
        """Adds every group, host and host variable that `muster` names."""
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        answer = self._ask(os.path.dirname(os.path.abspath(path)))
        variables = answer.pop("_meta", {}).get("hostvars", {})
        for group, content in sorted(answer.items()):
            if group != "all":
                self.inventory.add_group(group)
            for host in content.get("hosts", []):
                self.inventory.add_host(host, group=group)
        for host, values in sorted(variables.items()):
            self.inventory.add_host(host)
            for name, value in sorted(values.items()):
                self.inventory.set_variable(host, name, value)
        for group, content in sorted(answer.items()):
            for child in content.get("children", []):
                # Ansible's own "ungrouped" is below "all" already.
                if child != "ungrouped":
                    self.inventory.add_group(child)
                    self.inventory.add_child(group, child)

    def _ask(self, base):
        command = [self.get_option("binary"), "inventory", "--list"]
        rack_file = self.get_option("rack_file")
        if rack_file:
            command += ["--file", os.path.join(base, rack_file)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired) as err:
            raise AnsibleParserError(f"cannot run {command[0]}: {err}") from err
        if done.returncode != 0:
            raise AnsibleParserError(f"{' '.join(command)}: {done.stderr.strip()}")
        try:
            return json.loads(done.stdout)
        except ValueError as err:
            raise AnsibleParserError(f"{command[0]} printed no JSON: {err}") from err
