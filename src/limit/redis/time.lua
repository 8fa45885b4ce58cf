-- What time it is, and on which run of Redis: the first piece of every script.

-- Microseconds since 1970: whole numbers below 2^53, which a double holds exactly. 0 asks Redis; anything else is the caller's clock.
local function clock(injected)
  if injected > 0 then return injected end
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

-- Changes when Redis restarts and when a replica takes over: what it has in memory may then be older than what was said.
local function run_id()
  return string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
end

-- All digits of a whole number; `..` and tostring keep 14 of them.
local function digits(n)
  return string.format('%.0f', n)
end
