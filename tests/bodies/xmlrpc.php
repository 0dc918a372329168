<?php
// What WordPress reads of calls of XML-RPC, for tests/wordpress.rs, which puts this file into a WordPress. To record
// more of them: "php xmlrpc.php DIRECTORY", where WordPress is. Each line of the input is a body as JSON; the answer
// is a line with the name of the call and its first parameters as JSON, or null, if WordPress refuses the body.
function apply_filters($name, $value) { return $value; }
error_reporting(0);
$wordpress = $argv[1] ?? __DIR__;
foreach (['date', 'message'] as $class) {
    require "$wordpress/wp-includes/IXR/class-IXR-$class.php";
}

// A value as it is recorded: one character a byte.
function said($values, $place) {
    if (!is_array($values) || !array_key_exists($place, $values)) {
        return 'Absent';
    }
    $value = $values[$place];
    return is_array($value) || is_object($value) ? 'List' : '=' . characters($value);
}

function characters($text) {
    $utf8 = fn($byte) => chr(0xc0 | ord($byte[0]) >> 6) . chr(0x80 | ord($byte[0]) & 0x3f);
    return preg_replace_callback('/[\x80-\xff]/', $utf8, (string) $text);
}

// The single values in their order, and how many members have the name of a call.
function flat($value, &$values, &$calls) {
    foreach (is_array($value) ? $value : [$value] as $key => $one) {
        $calls += $key === 'methodName' ? 1 : 0;
        if (is_array($one)) {
            flat($one, $values, $calls);
        } else {
            $values[] = $one;
        }
    }
}

$input = fopen(PHP_SAPI === 'cli' ? 'php://stdin' : 'php://input', 'r');
while (($line = fgets($input)) !== false) {
    try {
        $message = new IXR_Message(json_decode($line));
        $read = $message->parse() && $message->messageType === 'methodCall';
    } catch (Throwable $e) {
        $read = false;
    }
    if (!$read) {
        echo "null\n";
        continue;
    }
    // As WordPress's server does it before it calls a function.
    $values = count($message->params) === 1 ? $message->params[0] : $message->params;
    $calls = null;
    if ($message->methodName === 'system.multicall') {
        $all = [];
        $calls = 0;
        flat($message->params, $all, $calls);
        $values = $all;
    } elseif (!is_array($values)) {
        $values = [$values];
    }
    $found = ['methodName' => '=' . characters($message->methodName)];
    foreach ([0, 1, 2, 3] as $place) {
        $found["params.$place"] = said($values, $place);
    }
    $found['calls'] = $calls === null ? 'Absent' : "=$calls";
    echo json_encode($found, JSON_UNESCAPED_UNICODE | JSON_UNESCAPED_SLASHES), "\n";
}
