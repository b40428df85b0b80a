# A stand-in for as much of nixpkgs as module.nix uses, strict about types and unknown options, and what must and must
# not evaluate with it. Run by check.sh.
let
  inherit (builtins)
    all attrNames attrValues concatLists concatStringsSep elem filter foldl' head isAttrs isBool isInt isList isString
    listToAttrs map mapAttrs toJSON tryEval;

  # --- types: { name, check, merge }, where merge checks what is inside and fills in defaults ---
  plain = name: check: { inherit name check; merge = _path: value: value; };
  isDerivation = value: isAttrs value && (value.type or "") == "derivation";
  types = {
    bool = plain "boolean" isBool;
    str = plain "string" isString;
    int = plain "integer" isInt;
    port = plain "port" (value: isInt value && value >= 0 && value <= 65535);
    package = plain "package" isDerivation;
    anything = plain "anything" (_: true);
    file = plain "file" (value: isString value || isDerivation value);
    nullOr = inner: {
      name = "null or ${inner.name}";
      check = value: value == null || inner.check value;
      merge = path: value: if value == null then null else inner.merge path value;
    };
    listOf = inner: {
      name = "list of ${inner.name}";
      check = isList;
      merge = path: map (apply "${path}.*" inner);
    };
    attrsOf = inner: {
      name = "attributes of ${inner.name}";
      check = isAttrs;
      merge = path: mapAttrs (key: apply "${path}.${key}" inner);
    };
    submodule = module: {
      name = "submodule";
      check = isAttrs;
      merge = path: evaluate path module.options;
    };
  };
  apply = path: type: value:
    if type.check value then type.merge path value else throw "wrong type: ${path} is no ${type.name}";
  isOption = value: isAttrs value && (value._type or "") == "option";
  evaluate = path: options: values:
    let
      unknown = filter (key: !(options ? ${key})) (attrNames values);
      one = key: option:
        let here = if path == "" then key else "${path}.${key}"; in
        if isOption option then
          if values ? ${key} then apply here option.type values.${key}
          else option.default or (throw "missing: ${here}")
        else evaluate here option (values.${key} or { });
    in
    if unknown != [ ] then throw "unknown option: ${path}.${head unknown}" else mapAttrs one options;

  # --- lib ---
  recursiveUpdate = left: right:
    left // mapAttrs (key: value: if isAttrs value && isAttrs (left.${key} or null) && !isDerivation value then recursiveUpdate left.${key} value else value) right;
  # Like the module system: lists from two places are joined.
  merge = left: right:
    left // mapAttrs
      (key: value:
        let other = left.${key} or null; in
        if isAttrs value && isAttrs other && !isDerivation value then merge other value
        else if isList value && isList other then other ++ value
        else value)
      right;
  lib = {
    inherit types recursiveUpdate concatLists;
    inherit (builtins) mapAttrs;
    mkOption = option: option // { _type = "option"; };
    mkEnableOption = description: lib.mkOption { type = types.bool; default = false; inherit description; };
    mkIf = condition: value: if condition then value else { };
    mkMerge = foldl' merge { };
    optional = condition: value: if condition then [ value ] else [ ];
    optionals = condition: values: if condition then values else [ ];
    mapAttrsToList = f: set: map (key: f key set.${key}) (attrNames set);
    filterAttrs = keep: set: listToAttrs (map (name: { inherit name; value = set.${name}; }) (filter (name: keep name set.${name}) (attrNames set)));
    cleanSourceWith = source: assert source.filter ../../src "directory" && !source.filter ../../target "directory"; toString source.src;
    cleanSourceFilter = _path: _type: true;
    importTOML = path: builtins.fromTOML (builtins.readFile path);
    licenses = { mit = "MIT"; asl20 = "Apache-2.0"; };
    platforms.linux = [ "x86_64-linux" "aarch64-linux" ];
  };

  # --- pkgs ---
  inline = value:
    if isAttrs value then "{ ${concatStringsSep ", " (lib.mapAttrsToList (key: inner: "${toJSON key} = ${inline inner}") value)} }"
    else if isList value then "[ ${concatStringsSep ", " (map inline value)} ]"
    else if value == null then throw "wrong type: TOML has no null"
    else toJSON value;
  derivation = name: attributes: attributes // { type = "derivation"; inherit name; };
  pkgs = {
    formats.toml = _: {
      type = types.attrsOf types.anything;
      generate = name: value: derivation name {
        text = concatStringsSep "" (lib.mapAttrsToList (key: inner: "${toJSON key} = ${inline inner}\n") value);
      };
    };
    callPackage = path: _: import path {
      inherit lib;
      coreutils = "/coreutils";
      rustPlatform.buildRustPackage = attributes: derivation attributes.pname attributes;
    };
  };

  # --- the options of NixOS that the module may set ---
  option = type: default: lib.mkOption { inherit type default; };
  listOf = type: option (types.listOf type) [ ];
  attrsOf = options: option (types.attrsOf (types.submodule { inherit options; })) { };
  nixos = {
    assertions = listOf (types.submodule { options = { assertion = option types.bool true; message = option types.str ""; }; });
    environment.systemPackages = listOf types.package;
    environment.etc = attrsOf { source = lib.mkOption { type = types.file; }; };
    services.dbus.packages = listOf types.package;
    security.polkit.enable = option types.bool false;
    boot.kernelModules = listOf types.str;
    users.users = attrsOf {
      isSystemUser = option types.bool false;
      group = option types.str "";
      description = option types.str "";
    };
    users.groups = attrsOf { };
    networking.firewall.allowedUDPPorts = listOf types.port;
    systemd.packages = listOf types.package;
    systemd.services = attrsOf {
      wantedBy = listOf types.str;
      reloadTriggers = listOf types.file;
      restartTriggers = listOf types.file;
      serviceConfig = option (types.attrsOf types.anything) { };
    };
  };

  # What the system becomes when `services` is what the user wrote.
  system = services:
    let
      declared = import ./module.nix { inherit lib pkgs; config = { }; };
      result = import ./module.nix {
        inherit lib pkgs;
        config.services = evaluate "services" declared.options.services services;
      };
    in
    evaluate "" nixos result.config;

  full = system {
    meshd = {
      enable = true;
      openFirewall = true;
      settings.listen_port = 41821;
      networks.home = {
        addresses = [ "10.77.0.1/24" ];
        relays = [ ];
        interface = "mesh0";
        peers.bob = {
          id = example.id;
          addresses = [ "10.77.0.2" ];
          routes = [ "192.168.50.0/24" ];
        };
        peers.phone = {
          id = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
          wireguard = true;
          addresses = [ "10.77.0.3" ];
          endpoints = [ "203.0.113.7:51820" ];
        };
      };
      networks.work = { autostart = false; };
    };
    mesh-relay = {
      enable = true;
      openFirewall = true;
      settings = { listen = [ "[::]:443" ]; nodes = [ example.id ]; };
    };
  };
  secrets = system {
    meshd = {
      enable = true;
      networks.home = {
        identityFile = "/run/agenix/home";
        peers.bob = { id = example.id; pskFile = "/run/agenix/bob"; };
      };
    };
  };
  # The ed25519 base point's encoding is a valid node ID.
  example.id = "lbtgmztgmztgmztgmztgmztgmztgmztgmztgmztgmztgmztgmzta";
  file = name: set: set.environment.etc.${name}.source.text;
  contains = part: text: builtins.length (builtins.split part text) > 1;
in
rec {
  names.good = attrNames good;
  names.bad = attrNames bad;
  files.meshd = file "meshd/config.toml" full;
  files.relay = file "mesh-relay/relay.toml" full;

  good = {
    nothing_is_set_unless_enabled =
      let off = system { }; in
      off.systemd.services == { } && off.environment.etc == { } && off.users.users == { };
    enabled_alone_it_has_an_empty_configuration = file "meshd/config.toml" (system { meshd.enable = true; }) == "";
    settings_reach_the_file = contains "\"listen_port\" = 41821" files.meshd;
    networks_reach_the_file = contains "\"address\" = \\[ \"10.77.0.1/24\" ]" files.meshd;
    what_is_not_set_is_not_in_the_file = !(contains "identity_file" files.meshd) && !(contains "psk_file" files.meshd);
    both_firewalls_open = full.networking.firewall.allowedUDPPorts == [ 41821 5353 443 3478 ];
    without_discovery_its_port_stays_closed =
      (system { meshd = { enable = true; openFirewall = true; settings.lan_discovery = false; }; })
        .networking.firewall.allowedUDPPorts == [ 41820 ];
    a_closed_firewall_stays_closed = secrets.networking.firewall.allowedUDPPorts == [ ];
    a_changed_file_is_reloaded = builtins.length full.systemd.services.meshd.reloadTriggers == 1;
    secrets_are_credentials =
      secrets.systemd.services.meshd.serviceConfig.LoadCredential
        == [ "home.key:/run/agenix/home" "home.bob.psk:/run/agenix/bob" ]
      && contains "\"identity_file\" = \"/run/credentials/meshd.service/home.key\"" (file "meshd/config.toml" secrets)
      && contains "\"psk_file\" = \"/run/credentials/meshd.service/home.bob.psk\"" (file "meshd/config.toml" secrets);
    both_users_exist = attrNames full.users.users == [ "mesh-relay" "meshd" ];
    the_package_comes_once = builtins.length full.systemd.packages == 1;
    assertions_hold = all (one: one.assertion) full.assertions;
    a_random_port_cannot_be_opened = !(all (one: one.assertion)
      (system { meshd = { enable = true; openFirewall = true; settings.listen_port = 0; }; }).assertions);
    the_package_evaluates = (head full.systemd.packages).name == "meshd"
      && (head full.systemd.packages).version == (lib.importTOML ../../Cargo.toml).workspace.package.version;
  };

  bad = {
    unknown_option = { value = system { meshd = { enable = true; colour = "red"; }; }; reason = "unknown option: services.meshd.colour"; };
    unknown_option_of_a_network = {
      value = system { meshd = { enable = true; networks.home.adress = [ ]; }; };
      reason = "unknown option: services.meshd.networks.home.adress";
    };
    wrong_type = {
      value = system { meshd = { enable = true; networks.home.addresses = "10.77.0.1"; }; };
      reason = "wrong type: services.meshd.networks.home.addresses";
    };
    peer_without_id = {
      value = system { meshd = { enable = true; networks.home.peers.bob = { }; }; };
      reason = "missing: services.meshd.networks.home.peers.bob.id";
    };
    wrong_port = {
      value = system { mesh-relay = { enable = true; openFirewall = true; ports = [ 70000 ]; }; };
      reason = "wrong type: services.mesh-relay.ports";
    };
  };
}
