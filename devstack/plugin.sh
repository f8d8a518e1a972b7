#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# DevStack plugin. In local.conf:
#
#     enable_plugin virtlogd-driver <URL of this repository>

_virtlogd_driver_save_trace=$(set +o | grep xtrace)
set +o xtrace

VIRTLOGD_CONF=/etc/libvirt/virtlogd.conf
VIRTLOGD_QEMU_CONF=/etc/libvirt/qemu.conf
VIRTLOGD_HELPER_DIR=/etc/virtlogd-driver

# Set a value of one of libvirt's configuration files, the only one it has.
function virtlogd_driver_set {
    local file=$1 name=$2 value=$3
    sudo touch "$file"
    sudo sed -i "/^[[:space:]]*$name[[:space:]]*=/d" "$file"
    echo "$name = $value" | sudo tee -a "$file" >/dev/null
}

function virtlogd_driver_install {
    setup_develop "$VIRTLOGD_DRIVER_DIR"
}

# nova-compute's own file is a copy of nova.conf that start_nova_compute makes.
function virtlogd_driver_configure {
    iniset "$NOVA_CONF" DEFAULT compute_driver \
        virtlogd_driver.VirtlogdDriver
    iniset "$NOVA_CONF" serial_console enabled "$VIRTLOGD_SERIAL_CONSOLE"
    iniset "$NOVA_CONF" serial_console proxyclient_address "$HOST_IP"

    # The helpers go by a file of root's alone; DevStack's are its user's.
    sudo install -d -m 0755 "$VIRTLOGD_HELPER_DIR"
    sudo rm -f "$VIRTLOGD_HELPER_DIR/nova.conf"
    printf '[DEFAULT]\ninstances_path = %s\n' "$NOVA_INSTANCES_PATH" |
        sudo tee "$VIRTLOGD_HELPER_DIR/nova.conf" >/dev/null

    local group
    for group in virtlogd_privileged virtlogd_privileged_daemon \
            virtlogd_privileged_viewer; do
        iniset "$NOVA_CONF" "$group" helper_command \
            "sudo nova-rootwrap $NOVA_CONF_DIR/rootwrap.conf privsep-helper --config-file $VIRTLOGD_HELPER_DIR/nova.conf"
    done
    sudo install -m 0644 \
        "$VIRTLOGD_DRIVER_DIR/etc/nova/rootwrap.d/virtlogd-driver.filters" \
        "$NOVA_CONF_DIR/rootwrap.d/"

    virtlogd_driver_set $VIRTLOGD_QEMU_CONF stdio_handler '"logd"'
    if [[ -n "$VIRTLOGD_MAX_SIZE" ]]; then
        virtlogd_driver_set $VIRTLOGD_CONF max_size "$VIRTLOGD_MAX_SIZE"
    fi
    if [[ -n "$VIRTLOGD_MAX_BACKUPS" ]]; then
        virtlogd_driver_set $VIRTLOGD_CONF max_backups "$VIRTLOGD_MAX_BACKUPS"
    fi
    # Not restart: every log of the host would be dead.
    sudo systemctl start virtlogd.service
    sudo systemctl reload virtlogd.service
}

if is_service_enabled n-cpu; then
    if [[ "$1" == "stack" && "$2" == "install" ]]; then
        echo_summary "Installing virtlogd-driver"
        virtlogd_driver_install
    elif [[ "$1" == "stack" && "$2" == "post-config" ]]; then
        echo_summary "Configuring virtlogd-driver"
        virtlogd_driver_configure
    elif [[ "$1" == "clean" ]]; then
        sudo rm -f "$NOVA_CONF_DIR/rootwrap.d/virtlogd-driver.filters"
        sudo rm -rf "$VIRTLOGD_HELPER_DIR"
    fi
fi

$_virtlogd_driver_save_trace
