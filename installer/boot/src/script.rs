//! iPXE scripts, one per machine.
//!
//! Values that came from a machine or a person enter a script only through [`escape`]: iPXE
//! expands `${…}` and splits commands at `&&`, `||` and `;` wherever they stand.

use std::time::Duration;

use crate::Mac;

/// Where things are fetched from, and what the kernel is told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source<'a> {
    /// `http://ADDRESS:PORT`.
    pub(crate) http: &'a str,
    pub(crate) command_line: &'a str,
    pub(crate) pause: Duration,
}

impl Source<'_> {
    /// The address of a machine's script. iPXE expands the two settings when it follows it.
    pub(crate) fn script_url(&self, mac: Mac) -> String {
        let http = self.http;
        format!("{http}/boot.ipxe?mac={mac}&uuid=${{uuid}}&serial=${{serial:uristring}}")
    }

    /// Boots a machine of the plan. `initrd=` on the command line is how a kernel started by
    /// UEFI finds its initramfs; BIOS ignores it.
    pub(crate) fn render_boot(&self, name: &str, mac: Mac) -> String {
        let Self { http, command_line, pause } = self;
        let (name, again, pause) = (escape(name), self.script_url(mac), pause.as_secs());
        format!(
            "#!ipxe\n\
             echo Muster: {name} boots its node image\n\
             :fetch\n\
             imgfree\n\
             kernel {http}/image/vmlinuz initrd=initrd {command_line} || goto again\n\
             initrd --name initrd {http}/image/initrd || goto again\n\
             boot || goto again\n\
             :again\n\
             echo Muster: the node image did not start; asking again in {pause} s\n\
             sleep {pause}\n\
             chain --replace --autofree {again} || goto again\n"
        )
    }

    /// Keeps a machine that may not boot, shows why, and asks again.
    pub(crate) fn render_hold(&self, reason: &str, mac: Mac) -> String {
        let (reason, again, pause) = (escape(reason), self.script_url(mac), self.pause.as_secs());
        format!(
            "#!ipxe\n\
             echo Muster: machine {mac} is held: {reason}\n\
             echo It gets no image and nothing on its disks is touched.\n\
             :again\n\
             sleep {pause}\n\
             chain --replace --autofree {again} || goto again\n"
        )
    }
}

/// Says whether a command line goes through iPXE as it is.
pub(crate) fn is_safe_command_line(text: &str) -> bool {
    let plain = text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    let splits = text.split(' ').any(|word| matches!(word, "&&" | "||" | ";"));
    let special = text.contains("${") || text.contains(['"', '\'', '\\', '#']);
    plain && !splits && !special
}

/// Leaves of a text only what iPXE's `echo` prints as it is.
fn escape(text: &str) -> String {
    let keep = |c: char| {
        if c.is_ascii_alphanumeric() || " .,:-_/()=+@".contains(c) { c } else { '?' }
    };
    text.chars().take(300).map(keep).collect()
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn source() -> Source<'static> {
        Source {
            http: "http://10.98.0.1:8080",
            command_line: "console=ttyS0 quiet muster.hash=00ff",
            pause: Duration::from_secs(10),
        }
    }

    #[test]
    fn a_machine_of_the_plan_boots() {
        let script = source().render_boot("a-worker", Mac::new([0x52, 0x54, 0, 0, 1, 0x0b]));
        expect![[r#"
            #!ipxe
            echo Muster: a-worker boots its node image
            :fetch
            imgfree
            kernel http://10.98.0.1:8080/image/vmlinuz initrd=initrd console=ttyS0 quiet muster.hash=00ff || goto again
            initrd --name initrd http://10.98.0.1:8080/image/initrd || goto again
            boot || goto again
            :again
            echo Muster: the node image did not start; asking again in 10 s
            sleep 10
            chain --replace --autofree http://10.98.0.1:8080/boot.ipxe?mac=52:54:00:00:01:0b&uuid=${uuid}&serial=${serial:uristring} || goto again
        "#]]
        .assert_eq(&script);
    }

    #[test]
    fn a_held_machine_gets_no_image_whatever_its_name() {
        let evil = "x\nkernel http://evil/ || ${net0/mac} && boot ; #!ipxe";
        let script = source().render_hold(evil, Mac::new([2; 6]));
        expect![[r#"
            #!ipxe
            echo Muster: machine 02:02:02:02:02:02 is held: x?kernel http://evil/ ?? ??net0/mac? ?? boot ? ??ipxe
            echo It gets no image and nothing on its disks is touched.
            :again
            sleep 10
            chain --replace --autofree http://10.98.0.1:8080/boot.ipxe?mac=02:02:02:02:02:02&uuid=${uuid}&serial=${serial:uristring} || goto again
        "#]]
        .assert_eq(&script);
    }

    #[test]
    fn only_a_plain_command_line_is_taken() {
        assert!(is_safe_command_line("console=ttyS0 muster.root=http://10.98.0.1:8080/root.img"));
        for bad in ["a\nb", "a && b", "a || b", "a ; b", "${x}", "a=\"b\"", "a # b", "ü"] {
            assert!(!is_safe_command_line(bad), "{bad}");
        }
    }
}
