-- A worker says what it holds, in an index that has not opened yet; and that it still holds what it is settling.
-- ARGV: now, lines, consumer, injected, then for each: line, entry, id.
-- Gives: epoch, then the entry of each that had to be entered anew ('' if it is as it was, or cannot be).
even_when_full()
local now, consumer = tonumber(ARGV[1]), ARGV[3]
local name, open_at = epoch_of_this_run()
if not name then return {''} end
local answer = {name}
for i = 5, #ARGV, 3 do
  local line, entry, id = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local stream, now_in = of(line, 'jobs'), ''
  if #held_by(line, {{entry, id}}, consumer) > 0 then
    local time = ARGV[4] == '1' and {'TIME', number(now)} or {}
    redis.call('XCLAIM', stream, GROUP, consumer, '0', entry, 'JUSTID', unpack(time))
  elseif open_at > now then
    now_in = add(line, {id})[1] or ''
    local read
    while now_in ~= '' and read ~= now_in do
      read = redis.call('XREADGROUP', 'GROUP', GROUP, consumer, 'COUNT', 1, 'STREAMS', stream, '>')[1][2][1][1]
      -- Somebody's clock is fast: for it the index has opened already.
      if read ~= now_in then redis.call('XCLAIM', stream, GROUP, FREE, '0', read, 'JUSTID') end
    end
    if now_in ~= '' then redis.call('HSET', index, id, held_at(line, now_in, consumer)) end
    if now_in ~= '' and ARGV[4] == '1' then
      redis.call('XCLAIM', stream, GROUP, consumer, '0', now_in, 'JUSTID', 'TIME', number(now))
    end
  end
  answer[#answer + 1] = now_in
end
return answer
