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

    local group
    for group in virtlogd_privileged virtlogd_privileged_daemon \
            virtlogd_privileged_viewer; do
        iniset "$NOVA_CONF" "$group" helper_command \
            "sudo nova-rootwrap $NOVA_CONF_DIR/rootwrap.conf privsep-helper --config-file $NOVA_CPU_CONF"
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
    fi
fi

$_virtlogd_driver_save_trace
